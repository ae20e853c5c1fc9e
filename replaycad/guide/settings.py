"""Settings: what `--set STAGE.FIELD=VALUE` changes, by recipe (`--recipe`).

Within one stage's command the stage may be left out: `replaycad train --set num_steps=400`. Here 0
or - means: as the backbone, the set encoder, the class's policy or the preset of the detector says.
Presets, `mini` for the bundled encoder and the papers' `full`, stand in `detectors/<name>/preset.py`, what
each field means in `recipes.py`. Without `--recipe` the backbone brings one: the bundled one `mini`,
any other `fast`; a backbone that is named with `paper` or `fast` brings its batch and rates.
"""

import textwrap

from replaycad.config.recipes import RECIPES
from replaycad.config.stages import STAGES, as_dict


def read_off() -> str:
    """Every field with its value in each recipe; those that are equal in all as one line."""
    rows = [f"| setting | {' | '.join(RECIPES)} |", "| --- |" + " --- |" * len(RECIPES)]
    equal = []
    for stage in STAGES:
        configs = [as_dict(recipe[stage]) for recipe in RECIPES.values()]
        for name in configs[0]:
            values = [str(config[name]) or "-" for config in configs]
            if len(set(values)) > 1:
                rows.append(f"| `{stage}.{name}` | {' | '.join(values)} |")
            else:
                equal.append(f"`{stage}.{name}` {values[0]}")
    same = textwrap.wrap(f"The same in all: {', '.join(equal)}.", 100)
    return "\n".join([*rows, "", *same])
