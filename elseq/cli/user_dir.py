"""elseq-user-dir: print the folder that fairseq's --user-dir wants."""

from pathlib import Path


def main() -> None:
    print(Path(__file__).resolve().parents[1])


if __name__ == "__main__":
    main()
