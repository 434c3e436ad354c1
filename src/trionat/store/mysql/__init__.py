"""Accounts and traffic in the tables of the Go program, in MySQL or MariaDB. Imported only where a database is configured."""
