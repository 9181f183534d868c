"""Settings that all plans share: how and where each run is made."""

import argparse
from dataclasses import dataclass

import torch

import elseq
from elseq.benchmark import report


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How and where each run of a plan is made."""

    dtype: str
    device: str
    threads: int
    repeats: int

    def conditions(self) -> dict:
        """The part of each run's request."""
        return {"dtype": self.dtype, "device": self.device, "threads": self.threads, "repeats": self.repeats}

    def title(self, *groups: list[str], versions: list[str] | None = None) -> str:
        """The line above the tables: the given groups, the machine and the versions (default: `report.versions`)."""
        where = report.machine(self.device, self.threads, self.dtype)
        return report.heading([*groups, where, report.versions() if versions is None else versions])

    def environment(self) -> dict:
        """Conditions and versions on which figures depend, for the JSON."""
        versions = {"torch": torch.__version__, "fairseq": report.fairseq_version(), "elseq": elseq.__version__}
        return self.conditions() | {"device": report.device_name(self.device)} | versions


def read_conditions(args: argparse.Namespace) -> dict:
    """The fields of `Conditions`, of the options that `elseq.benchmark.arguments.add_run_options` adds."""
    threads = args.threads or torch.get_num_threads()
    return {"dtype": args.dtype, "device": args.device, "threads": threads, "repeats": args.repeats}
