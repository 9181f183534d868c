"""What the plans of all papers' benchmarks have in common: how and where each run is made."""

import argparse
from dataclasses import dataclass

import torch

import elseq
from elseq.benchmark.report import device_name, fairseq_version


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How and where each run of a plan is made."""

    dtype: str
    device: str
    threads: int
    repeats: int

    def conditions(self) -> dict:
        """What the request of each run has of this."""
        return {"dtype": self.dtype, "device": self.device, "threads": self.threads, "repeats": self.repeats}

    def environment(self) -> dict:
        """The same for the JSON, and the versions on which figures depend."""
        versions = {"torch": torch.__version__, "fairseq": fairseq_version(), "elseq": elseq.__version__}
        return self.conditions() | {"device": device_name(self.device)} | versions


def read_conditions(args: argparse.Namespace) -> dict:
    """The fields of `Conditions`, of the options that `elseq.benchmark.arguments.add_run_options` adds."""
    threads = args.threads or torch.get_num_threads()
    return {"dtype": args.dtype, "device": args.device, "threads": threads, "repeats": args.repeats}
