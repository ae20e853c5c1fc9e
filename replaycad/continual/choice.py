"""Which form a class is kept in, where the choice is left to `auto`: measured, without a label."""

from collections.abc import Mapping

from replaycad.recipes import Form

FORMS: tuple[Form, ...] = ("exemplars", "hybrid", "conditions")
"""What `auto` chooses among, what needs the least first."""
MARGIN = 0.05
"""Of separation, by which a later form must be better: two standard deviations of the difference
between two picks of images of one class (of one pick 0.018; eight held-out procedural classes of
200 images, four picks of each in 100,000 bytes)."""
TRIED_ON = 64  # images, at most, that forms are tried on, and
TRIED_LEAST = 5  # below which there is nothing to choose: the images are kept
TRIED_REPLAYS = 64


def chosen_form(separations: Mapping[Form, float]) -> Form:
    """The form that `auto` keeps a class in, from what `coverage.separations` says of each."""
    chosen: Form | None = None
    for form in (form for form in FORMS if form in separations):
        if chosen is None or separations[form] > separations[chosen] + MARGIN:
            chosen = form
    assert chosen is not None
    return chosen
