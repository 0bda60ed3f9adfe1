"""The depth figures in words, each beside what it would be if nothing were to be seen. Knows nothing of runs or tables."""

from collections.abc import Callable

from tokendeep.depth.profile import verdict
from tokendeep.records import Bounded, Kl, Profile
from tokendeep.report.words import beyond, bracket, listed, percent


def recovery_short(profile: Profile) -> str:
    """The recovery depth in as few words as are true."""
    figure, last = profile.depth.recovery_k, profile.recovery.k[-1]
    if figure.value is None:
        return "at no k"
    return f"at k = {last}, the largest measured" if figure.censored else f"up to k = {figure.value:.0f}"


def recovery_words(profile: Profile) -> str:
    """The recovery depth with its interval, censored cases in words."""
    figure, ks = profile.depth.recovery_k, profile.recovery.k
    first, last = ks[0], ks[-1]
    bounds = _bounds(figure, last)
    if figure.censored == "every":
        return f"at every k measured, up to k = {last}{bounds}; how much deeper is not known"
    if figure.censored == "last":
        return f"at the largest k measured, k = {last}{bounds}{_but(profile, last)}; how much deeper is not known"
    if figure.censored == "none" or figure.value is None:
        shallow = "not even with no harmful token given" if first == 0 else f"the smallest measured is k = {first}"
        return f"at no k, {shallow}{bounds}"
    return f"up to k = {figure.value:.0f}{bounds}{_but(profile, figure.value)}"


def _but(profile: Profile, deepest: float) -> str:
    """The k below it at which fewer than half of the prompts recover."""
    gaps = profile.recovery.gaps(deepest)
    return f", though not at k = {listed(map(str, gaps))}" if gaps else ""


def _bounds(figure: Bounded, last: int) -> str:
    if figure.low is None and figure.high is None:
        return ""
    low, high = (
        "none" if v is None else f"{v:.0f} or more" if v >= last else f"{v:.0f}" for v in (figure.low, figure.high)
    )
    return f" [{low}]" if low == high else f" [{low}, {high}]"


def positions(profile: Profile) -> str:
    """How many answer positions were looked at."""
    return "?" if profile.meta.positions is None else str(profile.meta.positions)


def kl_sentences(profile: Profile) -> list[str]:
    """Where the KL lies, and what of it goes beyond benign answers; nothing where there is no KL."""
    share, kl = profile.depth.share_first5, profile.kl
    if kl is None or share is None or share.value is None:
        return []
    where = (
        f"Of its KL to the base {percent(share.value)} lies in the first 5 of {positions(profile)} answer positions; "
        f"spread evenly it would be {percent(kl.even_share())}."
    )
    return [where, *_beyond_benign(profile, kl)]


def _beyond_benign(profile: Profile, kl: Kl) -> list[str]:
    share, both = profile.depth.excess_share_first5, profile.general_share()
    if share is None or both is None:
        return []
    if share.value is None:
        rest = f"show {percent(both)} of it as well, and the rest is within noise"
        return [f"Benign answers {rest if both < 1 else 'show as much or more'}: no sign of safety in it."]
    ends = "" if share.low is None else f" {bracket(share.low, share.high)}"
    even = percent(kl.beside(profile.kl_benign).even_share())
    rest = f"of the rest {percent(share.value)}{ends} lies in the first 5 (evenly {even})"
    return [f"Benign answers show {percent(both)} of it as well; {rest}."]


def _kl_figure(name: str, even: Callable[[Kl], float], form: Callable[[float], str]) -> Callable[[Profile], str]:
    """The words for a figure of the KL: its value, its interval, what it would be if spread evenly, and where it lies."""

    def words(profile: Profile) -> str:
        figure, kl = getattr(profile.depth, name), profile.kl
        if figure is None or kl is None or (figure.value is None and figure.censored is None):
            return "- (no benign answers)" if kl and name.startswith("excess") else "- (no KL)"
        if figure.value is None:
            return "within noise"
        reference = even(kl.beside(profile.kl_benign) if name.startswith("excess") else kl)
        ends = "" if figure.low is None or figure.high is None else f" [{form(figure.low)}, {form(figure.high)}]"
        return f"{form(figure.value)}{ends}, evenly {form(reference)}: {_where(figure, reference, name)}"

    return words


def _where(figure: Bounded, even: float, name: str) -> str:
    """Whether KL lies at the front, in words."""
    if figure.low is None or figure.high is None:
        return "not clear, for its interval is not known"
    if not beyond(figure, even):
        return "as if spread evenly"
    front = (figure.value or 0.0) > even if name.endswith("first5") else (figure.value or 0.0) < even
    return "at the front" if front else "further back"


FIGURES: dict[str, Callable[[Profile], str]] = {
    "KL in the first 5 positions": _kl_figure("share_first5", Kl.even_share, percent),
    "half of the KL by position": _kl_figure("half_kl_position", Kl.even_half, "{:.0f}".format),
    "beyond benign answers: in the first 5": _kl_figure("excess_share_first5", Kl.even_share, percent),
    "beyond benign answers: half by position": _kl_figure("excess_half_position", Kl.even_half, "{:.0f}".format),
    "half of the prompts recover": recovery_words,
    "in words": lambda profile: verdict(profile)[1],
    "prompts": lambda profile: str(profile.prompts),
}
