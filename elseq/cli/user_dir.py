"""elseq-user-dir: print the folder of the installed package, for fairseq's --user-dir."""

from pathlib import Path


def main():
    print(Path(__file__).absolute().parents[1])
