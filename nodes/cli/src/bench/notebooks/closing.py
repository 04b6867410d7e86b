# The bench's own last cell: what the session holds, a line for each name.
def _describe(value):
    import hashlib
    import re

    kind = type(value).__module__ + "." + type(value).__qualname__
    try:
        if kind == "numpy.ndarray" and not value.dtype.hasobject:
            text = f"{value.shape} {value.dtype} {value.tobytes().hex()}"
        elif kind.startswith("pandas.") and hasattr(value, "to_csv"):
            text = value.to_csv()
        elif kind == "numpy.random.mtrand.RandomState":
            name, key, *rest = value.get_state()
            text = f"{name} {key.tobytes().hex()} {rest}"
        elif isinstance(value, (set, frozenset)):
            text = str(sorted(map(repr, value)))
        else:
            text = re.sub(r"\b0x[0-9a-fA-F]+", "0x", repr(value))
    except Exception as error:
        return f"{kind} = no text: {type(error).__name__}"
    return f"{kind} = {text[:100]!r} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


for _name in sorted(globals()):
    if not _name.startswith("_") and _name not in ("In", "Out", "exit", "quit", "open", "get_ipython"):
        print(f"{_name}: {_describe(globals()[_name])}")
