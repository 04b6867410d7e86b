"""Callboard's side of a Python kernel: finds what each cell changed and hands it to the node.

`python -m callboard_kernel -f CONNECTION_FILE` runs a stock ipykernel with a kernel class that,
after every request that ran user code, walks the session, pickles the groups of names that changed
and sends them over the state socket named by `CALLBOARD_STATE_SOCKET`. On a `restore` message it
rebuilds a session from such groups.

Modules, from the outside in: `kernel` (ipykernel hooks) with `magics` (`%callboard`), `channel` (socket
and framing), `tracker` (one capture) with `delta` (what it sends), `restore`, `graph` and `bundles`
(which names travel together), `sharing` (what they share), `namespace` (which names count), `pickler`
with `reducers`, `functions` and `arrays` (bytes), `fingerprint` (what need not be pickled again),
`buffers` with `dirty` (what of large memory need not be read again), `watchdog` (what must not hang),
`background` (what runs beside the cells), `session`, `history` and `sources` (state beyond variables),
`comms` and `traits` (widgets), `protocol` (requests that ipykernel would leave unanswered), `refusal` and
`placeholder` (what cannot be carried), `live` (the running session that pickles refer to), `isolation`
(whose process it is). Beside them `zygote`, which forks kernels, `preload`, the libraries it has ready, and
`foreign`, which becomes the kernel of another language.
"""

PROTOCOL_VERSION = 2
