"""What a client or a server shows a person who looks at its terminal. The rest of the program knows of it only where such a terminal is there."""
