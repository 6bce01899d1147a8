"""Lists what a model can be taught: ready and planned capabilities, what they need, and how to use them.

With `datasets=true` it lists the dataset cards instead, as a table in Markdown.
"""

from __future__ import annotations

import nexus.signals  # noqa: F401  before anything else: until it is loaded, a signal ends the process

# isort: split
import argparse
import sys

from nexus.config.capabilities import MEASURED_ONLY, CapabilityInfo, read_capabilities
from nexus.config.datasets import DatasetInfo, read_datasets
from nexus.errors import NexusError, discard_output


def describe(info: CapabilityInfo) -> str:
    """Two lines about a capability."""
    use = f"+capability={info.name}" if info.status == "ready" else f"comes with: {info.part}"
    use += " (evaluate only)" if info.name in MEASURED_ONLY else ""
    return f"  {info.name:<20} {info.status:<8} {'+'.join(info.requires):<24} {use}\n  {'':<20} {info.description}"


def dataset_table() -> str:
    """Every card of a certain set as a row of a Markdown table, under a line on how to use one."""
    cards = [info for info in read_datasets().values() if info.is_hub or info.kind == "embedded"]
    lines = [
        f"{len(cards)} dataset cards. Train on one: +dataset@data.sources.NAME=CARD; add one to a capability:",
        "+dataset@capabilities.CAPABILITY.sources.NAME=CARD; the cards hub and files take any set and any file.",
        "",
        "| card | set (config, split) | rows | licence | gated | role | what it holds |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_dataset_row(info) for info in cards)])


def _dataset_row(info: DatasetInfo) -> str:
    place = f"{info.repository} ({', '.join(filter(None, (info.config, info.split)))})" if info.is_hub else "embedded"
    if info.revision:
        place += f" @{info.revision[:8]}"
    size = "made to order" if not info.is_hub else f"{info.size:,}" if info.size else "not known here"
    gated, role = "yes" if info.gated else "no", "+".join(info.roles)
    about = info.about.replace("|", "/")
    return f"| {info.name} | {place} | {size} | {info.license or 'not known here'} | {gated} | {role} | {about} |"


def _wants_datasets(words: list[str]) -> bool:
    """The only setting of this door."""
    wanted = False
    for word in words:
        key, _, value = word.partition("=")
        if key != "datasets" or value not in ("true", "false"):
            raise NexusError("E-CFG-05", f"{word!r} means nothing here", where="command line", remedy="datasets=true")
        wanted = value == "true"
    return wanted


def main() -> int:
    """Print the list; returns the exit status."""
    parser = argparse.ArgumentParser(prog="nexus capabilities", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="datasets=true", help="list the dataset cards instead")
    try:
        if _wants_datasets(parser.parse_args().settings):
            print(dataset_table(), flush=True)
        else:
            _print_capabilities()
    except NexusError as error:
        print(error, file=sys.stderr)
        return error.status
    except BrokenPipeError:
        return discard_output()
    return 0


def _print_capabilities() -> None:
    capabilities, lists = read_capabilities()
    ready = sum(info.status == "ready" for info in capabilities.values())
    print(f"{len(capabilities)} capabilities, {ready} ready\n")
    print(f"  {'name':<20} {'status':<8} {'modalities':<24} how to use it, or which part brings it")
    for info in capabilities.values():
        print(describe(info))
    print("\nlists of several")
    for several in lists.values():
        planned = [name for name in several.members if capabilities[name].status == "planned"]
        state = f"planned, waits for {', '.join(planned)}" if planned else f"+capability={several.name}"
        print(f"  {several.name:<20} {', '.join(several.members)}\n  {'':<20} {state}")
    print("\npython -m nexus.train '+capability=[cot,tools]'    teaches two at once", flush=True)


if __name__ == "__main__":
    sys.exit(main())
