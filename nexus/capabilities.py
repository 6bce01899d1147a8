"""Lists what a model can be taught: ready and planned capabilities, what they need, and how to use them."""

from __future__ import annotations

import argparse
import sys

from nexus.config.capabilities import MEASURED_ONLY, CapabilityInfo, read_capabilities


def describe(info: CapabilityInfo) -> str:
    """Two lines about a capability."""
    use = f"+capability={info.name}" if info.status == "ready" else f"comes with: {info.part}"
    use += " (evaluate only)" if info.name in MEASURED_ONLY else ""
    return f"  {info.name:<20} {info.status:<8} {'+'.join(info.requires):<24} {use}\n  {'':<20} {info.description}"


def main() -> int:
    """Print the list; returns the exit status."""
    parser = argparse.ArgumentParser(prog="nexus capabilities", description=__doc__)
    parser.parse_args()
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
    print("\npython -m nexus.train '+capability=[cot,tools]'    teaches two at once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
