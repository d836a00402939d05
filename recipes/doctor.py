"""Says what this machine can do and what is missing, each missing thing with its remedy.

    rlhf doctor

Looks at Python, packages, devices, precisions, memory, disk, the optional parts, llama.cpp's converter, and the Hub: if
there is a token (never which), and if it answers. Exits with 1 if something is broken that the stages need.
"""

import sys
from itertools import chain

from rlhf.errors import PlainParser
from rlhf.setup.finding import packages


def main() -> None:
    PlainParser(__doc__).parse_args()
    found = list(packages())
    if broken := [finding for finding in found if finding.state == "broken"]:
        for finding in broken:  # nothing else can be looked at
            print(f"broken: {finding.name}: {finding.text}\n-> {finding.remedy}")
        sys.exit(1)

    from rlhf.runs.console import paint, say, show, show_title
    from rlhf.setup.doctor import examine  # not at the top: without these packages it cannot be imported

    show_title("doctor", "what this machine can do")
    missing = []
    for finding in chain(found, examine()):
        mark = {"ok": "", "missing": paint("missing: ", "33"), "broken": paint("broken: ", "31")}[finding.state]
        show(finding.name, f"{mark}{finding.text}" + (f"\n-> {finding.remedy}" if finding.remedy else ""))
        broken += [finding] if finding.state == "broken" else []
        missing += [finding.name] if finding.state == "missing" else []
    say("")
    if broken:
        show("result", f"broken: {', '.join(finding.name for finding in broken)}, which the stages need")
        sys.exit(1)
    show("result", "all that the stages need is there" + (f"; without {', '.join(missing)}" if missing else ""))
    show("next", "rlhf demo, or rlhf new mine --model <folder or Hub id> --data <file>")


if __name__ == "__main__":
    main()
