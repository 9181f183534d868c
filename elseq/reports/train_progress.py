"""Show fairseq's JSON training log, read from standard input, as a progress bar. Usage: train_progress UPDATES"""

import json
import sys

from tqdm import tqdm


def main(arguments):
    updates = int(arguments[0])
    # On a terminal a moving bar, in a file a line now and then.
    interval = 0.5 if sys.stderr.isatty() else 20
    with tqdm(total=updates, unit=" updates", mininterval=interval, maxinterval=interval, ncols=100) as bar:
        for line in sys.stdin:
            _, _, entry = line.partition("| train_inner | ")
            if entry:
                values = json.loads(entry)
                bar.set_postfix(loss=values["loss"], refresh=False)
                bar.update(int(values["num_updates"]) - bar.n)


if __name__ == "__main__":
    main(sys.argv[1:])
