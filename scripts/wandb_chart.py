"""Register the chart of the vanishing curve with Weights & Biases; once for each entity.

    python scripts/wandb_chart.py                     with the account that `wandb login` knows
    python scripts/wandb_chart.py --entity my-team    for a team
    python scripts/wandb_chart.py --print             show the Vega JSON, talk to nobody

It prints what to give as ``record.wandb.chart``. W&B shows the chart's slider above the curves,
and again as a field behind the gear of the panel.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.resources import files
from typing import Any

NAME = "gradlab-vanishing-curve"
CHART = files("gradlab.record") / "charts" / "vanishing_curve.json"


def main() -> int:
    """Register or print; gives the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entity", help="user or team that owns it; the account's own by default")
    parser.add_argument("--name", default=NAME, help=f"its name there; {NAME} by default")
    parser.add_argument("--public", action="store_true", help="for everybody to use")
    parser.add_argument("--print", action="store_true", help="print the Vega JSON and stop")
    options = parser.parse_args()
    text = CHART.read_text(encoding="utf-8")
    if options.print:
        print(text, end="")
        return 0
    return register(json.loads(text), options.entity, options.name, options.public)


def register(spec: dict[str, Any], entity: str | None, name: str, public: bool) -> int:
    """Hand ``spec`` to W&B and print its id; gives the exit code."""
    import wandb
    from wandb.errors import AuthenticationError, UsageError

    try:
        # Asks for nothing, where wandb.Api() alone would ask for a key on a terminal.
        if not wandb.login(prompt=False):
            return refuse("W&B knows no account here", "`wandb login`, or WANDB_API_KEY=...")
        api = wandb.Api()
        owner = entity or api.default_entity
        if not owner:
            return refuse("W&B names no default entity", "--entity USER_OR_TEAM")
        chart = api.create_custom_chart(
            entity=owner,
            name=name,
            display_name="Vanishing curve over training steps",
            spec_type="vega2",
            access="public" if public else "private",
            spec=spec,
        )
    except (AuthenticationError, UsageError) as error:
        return refuse(str(error), "`wandb login --relogin`, and wandb 0.31 or newer")
    except Exception as error:  # noqa: BLE001  (also W&B's private kinds, where the server says no)
        hint = "another --name if it is taken, another --entity if that one is not yours"
        return refuse(str(error).strip(), hint)
    print(f"record.wandb.chart={chart}")
    return 0


def refuse(reason: str, hint: str) -> int:
    """Say why nothing was registered; gives the exit code."""
    print(f"wandb_chart: nothing was registered: {reason}\n  try: {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
