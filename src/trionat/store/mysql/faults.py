"""What the errors of a database mean, and what to do about them."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final

from asyncmy.constants import CR, ER

if TYPE_CHECKING:
    from asyncmy import errors

    from trionat.config.database import DatabaseConfig

DENIALS: Final = {
    ER.DBACCESS_DENIED_ERROR,
    ER.TABLEACCESS_DENIED_ERROR,
    ER.COLUMNACCESS_DENIED_ERROR,
}

INCOMPARABLE: Final = {
    ER.CANT_AGGREGATE_2COLLATIONS,
    ER.CANT_AGGREGATE_3COLLATIONS,
    ER.CANT_AGGREGATE_NCOLLATIONS,
    3854,  # ER_CANNOT_CONVERT_STRING of MySQL 8
}

REFUSALS: Final = {
    ER.DUP_ENTRY,  # a unique index by a collation to which two names are one
    ER.NO_REFERENCED_ROW,
    ER.NO_REFERENCED_ROW_2,
    ER.WARN_DATA_OUT_OF_RANGE,
    ER.WARN_DATA_TRUNCATED,
    ER.TRUNCATED_WRONG_VALUE,
    ER.TRUNCATED_WRONG_VALUE_FOR_FIELD,  # characters that the column cannot hold
    ER.INVALID_CHARACTER_STRING,
    ER.DATA_TOO_LONG,
    ER.CONSTRAINT_FAILED,  # MariaDB's
    1526,  # ER_NO_PARTITION_FOR_GIVEN_VALUE
    1644,  # ER_SIGNAL_EXCEPTION: a trigger says no
    1690,  # ER_DATA_OUT_OF_RANGE: of a sum
    1977,  # ER_CANNOT_CONVERT_CHARACTER of MariaDB
    3819,  # ER_CHECK_CONSTRAINT_VIOLATED of MySQL 8
    3988,  # ER_IMPOSSIBLE_STRING_CONVERSION of MySQL 8
}
"""What depends on the values of a row: other rows may be taken."""


def explain(error: errors.MySQLError, config: DatabaseConfig) -> str:
    """Say what an error means here, and what to do."""
    number, text = error.args if len(error.args) == 2 else (0, str(error))
    match number:
        case CR.CR_CONN_HOST_ERROR:
            return _explain_connection(error.__cause__)
        case CR.CR_SERVER_LOST | CR.CR_SERVER_GONE_ERROR | ER.SERVER_SHUTDOWN:
            return "the connection was lost: does it run?"
        # MariaDB has the second for users without a password.
        case ER.ACCESS_DENIED_ERROR | 1698:
            return f"it does not let {config.username!r} in: check Database.Username and Database.Password"
        case ER.BAD_DB_ERROR:
            return f"there is no database {config.db_name!r}: check Database.DBName, or make it"
        case ER.NO_SUCH_TABLE:
            return f"{text}: check Database.DBName, or run trionat db init"
        case ER.BAD_FIELD_ERROR:
            return f"{text}: trionat db check tells what a table has to have"
        case _ if number in DENIALS and text.startswith("CREATE"):
            return f"{text}: run trionat db init once as somebody who may make tables"
        case _ if number in DENIALS:
            return f"{text}: grant it to {config.username!r}"
        case ER.LOCK_WAIT_TIMEOUT:
            return "somebody else holds a lock"
        case ER.TRUNCATED_WRONG_VALUE_FOR_FIELD:
            return f"{text}: convert the table to utf8mb4: trionat db check tells how"
        case _:
            return f"{text} (error {number})" if number else text


def _explain_connection(cause: BaseException | None) -> str:
    match cause:
        case ssl.SSLCertVerificationError(verify_message=message):
            return f"its certificate is not to be trusted ({message}): check Database.CAFile and Database.Host"
        case ssl.SSLError():
            return f"TLS is not possible with it ({cause.reason}): does it have a certificate?"
        case OSError(errno=int(number)) if number > 0:  # asyncio has words of its own for it
            return f"{os.strerror(number)}: is it running, and is Database.Host right?"
        case OSError():
            return f"{cause.strerror or cause}: is it running, and is Database.Host right?"
        case _:
            return "it cannot be reached: is it running, and is Database.Host right?"
