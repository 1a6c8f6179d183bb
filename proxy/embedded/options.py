"""The options of the embedded engine.

Does not know where they come from: the CLI and the settings fill them in.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve one model.

    Attributes:
        model: a folder in Hugging Face format (fp32, bf16 or quantised by mlx-lm), or a hub id.
        served_name: the name that requests use for the base; `model` if empty.
        host: the address to listen on.
        port: the port to listen on; 0 picks one. The address is printed once it is bound.
        parent_fd: an inherited pipe whose end of file stops the process.
        listen_fd: an inherited socket that is bound to host and port already, to listen on.
        key: what requests have to send as `Authorization: Bearer`; empty for no key.
        online: whether a hub id may be downloaded.
        max_model_len: the context limit in tokens, at most what the model's config says, if it
            says something.
        max_rows: how many answers of one version are generated at once.
        max_queued: how many more may wait; beyond that a request gets 503.
        max_lora_rank: the largest rank of an adapter that is loaded.
        prefill_chunk: prompt tokens per step, of all prompts together; larger is faster, smaller
            stalls streams less.
        kv_cache_bytes: memory for the KV caches of all running answers, and of earlier requests.
            Without it, four fifths of what the weights leave of the memory that the GPU may use, or
            of half the machine's where there is none.
        prefix_cache_bytes: the most of it for the prompts of earlier requests; 0 keeps none.
        grace_s: how long running requests may go on after SIGTERM, in seconds.
        base_identity: the identity of the base; an adapter whose manifest names another is refused.
    """

    model: str
    served_name: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    parent_fd: int | None = None
    listen_fd: int | None = None
    key: str = field(default="", repr=False)
    online: bool = False
    max_model_len: int | None = None
    max_rows: int = 32
    max_queued: int = 256
    max_lora_rank: int = 256
    prefill_chunk: int = 512
    kv_cache_bytes: int | None = None
    prefix_cache_bytes: int = 4 << 30
    grace_s: float = 3.0
    base_identity: str | None = None

    @property
    def name(self) -> str:
        """The name that requests use for the base."""
        return self.served_name or self.model
