POLICIES = ("original", "compact")


def positions(ids, index, real, policy):
    out = ids.gather(-1, index.expand(*ids.shape[:-1], -1))
    if policy == "original":
        return out
    rank = (real.long().cumsum(-1) - 1).clamp(min=0)
    first = out.gather(-1, real.long().argmax(-1, keepdim=True).expand(*ids.shape[:-1], 1))
    return first + rank
