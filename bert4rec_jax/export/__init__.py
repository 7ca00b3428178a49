# SPDX-License-Identifier: Apache-2.0
"""Using a trained run without this package: `python -m bert4rec_jax.export`.

`model_function` is the scoring function that the formats contain.
`onnx_model` writes an ONNX file (`jaxpr_to_onnx` translates, `check` compares with the model),
`stablehlo` a serialized JAX function, and `readme` the catalogue and instructions. `page` builds a
web page that runs the model in the browser (`browser_runtime` fetches the runtime, `static/`
contains the page).
"""
