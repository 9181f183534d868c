"""elseq-user-dir: print what fairseq's --user-dir takes."""

import hashlib
import os
import re
import sys
from pathlib import Path

from elseq.arguments import Parser
from elseq.errors import UserError
from elseq.files import cache_folder

EPILOG = """\
Without folders, this is the installed package. With those of other plugins it is a folder that imports elseq and them:
fairseq takes only one. It is made in the user's cache, and made again whenever it is asked for.
"""

TEXT = '''"""Made by elseq-user-dir."""

import elseq  # noqa: F401
from elseq.compat.commands import import_user_dirs

for folder in {folders!r}:
    import_user_dirs(folder)
'''


def main() -> None:
    parser = Parser(prog="elseq-user-dir", description=__doc__.partition(": ")[2], epilog=EPILOG)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="of another plugin")
    folders = parser.parse_args(sys.argv[1:]).folders
    print(_combined(folders) if folders else Path(__file__).parents[1])


def _combined(folders: list[str]) -> Path:
    """The folder that imports elseq and these plugins.

    Raises:
        UserError: one of them is no folder, or that one cannot be made.
    """
    missing = next((folder for folder in folders if not os.path.isdir(folder)), None)
    if missing is not None:
        raise UserError(f"{missing} is no folder: give those of plugins")
    folders = [os.path.abspath(folder) for folder in folders]
    names = re.sub(r"\W", "_", "_".join(map(os.path.basename, folders)))
    digest = hashlib.sha256(repr(folders).encode()).hexdigest()[:8]
    made = cache_folder() / "user_dirs" / f"elseq_{names}_{digest}"
    try:
        made.mkdir(parents=True, exist_ok=True)
        (made / "__init__.py").write_text(TEXT.format(folders=folders), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{made} cannot be made ({error.strerror}): set XDG_CACHE_HOME to another folder") from error
    return made


if __name__ == "__main__":
    main()
