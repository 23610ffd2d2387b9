"""Pages of docs/ and the table of the README, written from what was measured."""

#: on pages whose figures of pictures were not measured again since; they go when they are
OLD_SITES = (
    "Pictures were measured before the prompt's embeddings became the default site: with the layers of the text "
    "encoder, or where a name says so the denoiser. What ships now is in [figures.md](figures.md#two-phrases)."
)
#: where methods that train are
TRAINED = "Methods that train, their settings and costs, are in [trained.md](trained.md)."
