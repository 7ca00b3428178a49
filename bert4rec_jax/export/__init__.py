# SPDX-License-Identifier: Apache-2.0
"""A trained run outside this package: `python -m bert4rec_jax.export`.

`__main__` is the command. `onnx_model` writes the model as an ONNX file (`jaxpr_to_onnx` translates, `check` compares
with the model itself), `stablehlo` as a serialized JAX function, `beside` the catalogue and a README next to them;
`page` builds a folder of static files in which a browser runs the model (`browser_runtime` fetches the runtime,
`static/` is the page).
"""
