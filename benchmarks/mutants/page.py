"""Page: what the mutants showed, as docs/measured/mutants.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from benchmarks.mutants.operators import COMPARED, INERT, MASK, NEGATED, OPERATORS, TIES, Mutant

KINDS = ("killed", "pinned", "equivalent", "survived")
COLUMNS = (
    "change",
    "pairs",
    "killed by what must hold",
    "by pins alone",
    "equivalent",
    "survived",
    "killed",
    "without pins",
)
HEAD = """# What the contract notices

`make mutants` breaks every method and every part that methods are made of, one small change at a time, and runs
`tokensieve.testing.check_method` on each method whose checks run the changed line. A change of a part counts once for every
such method. It is *killed* where a check fails (or does not come to an end); the two checks of memory are left out. No other
test takes part.

Two kinds of checks kill: *what must hold* of any method, one from outside this project included (budgets, rows, padding,
ties, meaning ...), and *pins*: what the library's own methods kept on random tokens when they were last looked at
(`tokensieve/testing/pins.json`), which says that something moved and not which way is right. The table keeps them apart.

- **score negated**: what a method's `score` or a function of `parts/score/` returns, and what `select` ranks by.
- **mask dropped**: one use of a mask of valid tokens, or of a part's mask, takes everything in.
- **comparison swapped**: `<` for `>` and `<=` for `>=`, wherever methods and parts compare.
- **ties reversed**: a sort, a maximum or a minimum along a dimension takes the later of equals first.
- **option inert**: an option has its default, whatever is given.

*Equivalent* are changes that nothing can notice, by rule: {rules}. They are left out of the share.
"""


def text(state: dict[str, Any], found: Iterable[tuple[Mutant, str]]) -> str:
    """The page, from what was found out about every pair of a mutant and a method."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    left: dict[Mutant, list[str]] = defaultdict(list)
    ran: Counter[Mutant] = Counter()
    same: Counter[Mutant] = Counter()
    rules: set[str] = set()
    for mutant, name in found:
        rule, killer = equivalent(mutant, name), state["pairs"][f"{mutant.key}@{name}"]
        if killer == "never evaluated":
            continue
        kind = {"pinned": "pinned", "": "survived", "never differed": "survived"}.get(killer, "killed")
        kind = "equivalent" if rule and kind != "killed" else kind
        rules |= {rule} - {""}
        rows[mutant.operator][kind] += 1
        rows["all"][kind] += 1
        ran[mutant] += 1
        if kind == "survived":
            left[mutant].append(name)
            same[mutant] += killer == "never differed"
    wrong = [name for name, fails in state["control"].items() if fails]
    lines = [HEAD.format(rules="; ".join(sorted(rules))), f"| {' | '.join(COLUMNS)} |", "|---" + "|---:" * 7 + "|"]
    for operator in (*OPERATORS, "all"):
        n = rows[operator]
        counted = max(n["killed"] + n["pinned"] + n["survived"], 1)
        share, plain = (n["killed"] + n["pinned"]) / counted, n["killed"] / counted
        told = [f"{count:,}" for count in (n.total(), *(n[kind] for kind in KINDS))]
        lines.append(f"| {' | '.join((operator, *told, f'{share:.1%}', f'{plain:.1%}'))} |")
    lines.append(f"| nothing changed | {len(state['control'])} | {len(wrong)} | | | | | |")
    everywhere = [m for m in left if len(left[m]) == ran[m]]
    noticed = len(ran) - len(everywhere)
    lines.append(
        f"\nOf {len(ran):,} changes, {noticed:,} are killed, or equivalent, in one at least of the methods that run them.\n"
    )
    lines += ["## What survives", "", "| change | where | code | why |", "|---|---|---|---|"]
    for mutant, names in sorted(left.items(), key=lambda item: (OPERATORS.index(item[0].operator), item[0].key)):
        code = mutant.before.replace("|", "\\|").replace("\n", " ")
        where = (
            mutant.before
            if mutant.operator == INERT
            else f"{mutant.file.removeprefix('tokensieve/')}:{mutant.lines[0]}"
        )
        lines.append(
            f"| {mutant.operator} | {where} | `{code[:60]}` | {why(mutant, names, ran[mutant], same[mutant])} |"
        )
    return "\n".join(lines) + "\n"


def equivalent(mutant: Mutant, name: str) -> str:
    """The rule by which nothing can notice a mutant in a method; "" where something could."""
    if mutant.operator == NEGATED and name == "random":
        return "noise with the opposite sign is noise"
    return mutant.equivalent


ABSORBED = {
    NEGATED: "it ranks a part of what stays or merges, and the whole still outranks the rest",
    MASK: "what it leaves out is left out again by what follows",
    COMPARED: "what follows makes up for it",
    TIES: "the equals that change places are equal in all that follows",
    INERT: "what the method declares of itself (`unit`, `group`, needs) follows it still, or its effect shows at other sizes",
}


def why(mutant: Mutant, names: list[str], ran: int, same: int) -> str:
    """What is known of a survivor: whether the change ever gave another value, and how many of its methods notice it."""
    where = f"killed in {ran - len(names)} of {ran} methods; " if ran > len(names) else ""
    reasons = []
    if same:
        reasons.append("nothing that the checks run gives another value there")
    if same < len(names):
        reasons.append(ABSORBED[mutant.operator])
    return f"{where}not in {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}: {'; or '.join(reasons)}"
