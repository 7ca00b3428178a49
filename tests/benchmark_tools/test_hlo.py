# SPDX-License-Identifier: Apache-2.0
"""What is read from compiled programs: products, bytes and collectives, loops as often as they run."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.hlo import accessed_bytes, parse, sent_bytes, shape_bytes

TEXT = """
HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: f32[1000,8], p1: s32[4]) -> f32[4,8] {
  %p0 = f32[1000,8]{1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  ROOT %g = f32[4,8]{1,0} gather(%p0, %p1), offset_dims={1}
}

%body (c: (s32[], f32[16])) -> (s32[], f32[16]) {
  %c = (s32[], f32[16]{0}) parameter(0)
  %x = f32[16]{0} get-tuple-element(%c), index=1
  %i = s32[] get-tuple-element(%c), index=0
  %r = f32[16]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[16]{0}) tuple(%i, %r)
}

ENTRY %main (w: f32[1000,8], ids: s32[4], s: (s32[], f32[16])) -> f32[4,8] {
  %w = f32[1000,8]{1,0:T(8,128)} parameter(0)
  %ids = s32[4]{0} parameter(1)
  %s = (s32[], f32[16]{0}) parameter(2)
  %loop = (s32[], f32[16]{0}) while(%s), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %near = f32[4,8]{1,0:S(1)} fusion(%w, %ids), kind=kLoop, calls=%fused
  %all = f32[16,8]{1,0} all-gather(%near), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %out = f32[4,8]{1,0} copy(%near)
}
"""


def test_collectives_count_as_often_as_their_loop_runs():
    sent = sent_bytes(parse(TEXT), 4)
    assert sent["all-reduce"] == 5 * 2 * 64 * 3 / 4
    assert sent["all-gather"] == 4 * 4 * 8 * 4 * 3 / 4
    assert sent["reduce-scatter"] == 0


def test_a_sum_of_which_a_part_is_kept_is_a_reduce_scatter():
    """In libtpu's notation; an all-reduce of the whole sum next to it stays an all-reduce."""
    text = """
%all-reduce-scatter (input: f32[16]) -> f32[4] {
  %input = f32[16]{0} parameter(0)
  %whole = f32[16]{0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  %place = s32[] constant(4)
  ROOT %part = f32[4]{0} dynamic-slice(%whole, %place), dynamic_slice_sizes={4}
}

ENTRY %main (x: f32[16]) -> f32[4] {
  %x = f32[16]{0} parameter(0)
  %all = f32[16]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %out = f32[4]{0} fusion(%all), kind=kCustom, calls=%all-reduce-scatter
}
"""
    sent = sent_bytes(parse(text), 4)
    assert sent["all-reduce"] == 2 * 64 * 3 / 4 and sent["reduce-scatter"] == 64 * 3 / 4


def test_a_collective_that_sparse_cores_do_meanwhile_counts_once():
    """As libtpu writes it for tpu7x: a call with a start and an end, which moves what is called and no more."""
    text = """
%called (p0: f32[16], p1: token[]) -> f32[64] {
  %p1 = token[] parameter(1)
  %p0 = f32[16]{0} parameter(0)
  ROOT %all = f32[64]{0} all-gather(%p0), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (x: f32[16]) -> f32[64] {
  %x = f32[16]{0} parameter(0)
  %begun = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
  %ready = token[] custom-call(%begun), custom_call_target="PrepareAsyncCallDone"
  %start = ((f32[16]{0}, token[]), f32[64]{0}) call-start(%x, %ready), async_execution_thread="sparsecore", to_apply=%called
  ROOT %done = f32[64]{0} call-done(%start)
}
"""
    assert sent_bytes(parse(text), 4)["all-gather"] == 4 * 64 * 3 / 4
    assert accessed_bytes(parse(text)) == 64 + 256


def test_picked_rows_count_alone_and_what_stays_on_chip_can_be_left_out():
    program = parse(TEXT)
    near, ids, out, gathered, reduced = 4 * 8 * 4, 16, 4 * 8 * 4, 16 * 8 * 4, 64
    assert (
        accessed_bytes(program, slow_only=False)
        == (near + ids + near) + (near + gathered) + (near + out) + 5 * 2 * reduced
    )
    assert accessed_bytes(program) == (ids + near) + gathered + out + 5 * 2 * reduced


def test_of_what_is_cut_out_the_cut_alone_is_read():
    """As XLA writes the gradients that were summed in one array; what is cut twice is read once at most."""
    text = """
%cut (p0: f32[1000]) -> f32[10] {
  %p0 = f32[1000]{0} parameter(0)
  ROOT %s = f32[10]{0} slice(%p0), slice={[5:15]}
}

%halves (p0: f32[1000]) -> f32[800] {
  %p0 = f32[1000]{0} parameter(0)
  %a = f32[800]{0} slice(%p0), slice={[0:800]}
  %b = f32[800]{0} slice(%p0), slice={[200:1000]}
  ROOT %c = f32[800]{0} add(%a, %b)
}

ENTRY %main (x: f32[1000]) -> f32[5] {
  %x = f32[1000]{0} parameter(0)
  %part = f32[10]{0} fusion(%x), kind=kLoop, calls=%cut
  %both = f32[800]{0} fusion(%x), kind=kLoop, calls=%halves
  ROOT %out = f32[5]{0} slice(%part), slice={[0:5]}
}
"""
    assert accessed_bytes(parse(text)) == (40 + 40) + (4000 + 3200) + (20 + 20)


def test_parameters_of_a_fused_part_stand_in_any_order():
    text = """
%part (p0: f32[1000], p1: f32[10]) -> f32[10] {
  %p1 = f32[10]{0} parameter(1)
  %p0 = f32[1000]{0} parameter(0)
  %s = f32[10]{0} slice(%p0), slice={[5:15]}
  ROOT %sum = f32[10]{0} add(%s, %p1)
}

ENTRY %main (x: f32[1000], y: f32[10]) -> f32[10] {
  %x = f32[1000]{0} parameter(0)
  %y = f32[10]{0} parameter(1)
  ROOT %out = f32[10]{0} fusion(%x, %y), kind=kLoop, calls=%part
}
"""
    assert accessed_bytes(parse(text)) == 40 + 40 + 40


def test_what_a_fusion_hands_on_as_it_was_given_counts_nothing():
    """A TPU's collective that goes on in two fusions is read and written once, by the first."""
    fusion = """
%first (p0: f32[100], p1: f32[10]) -> (f32[10], f32[100], f32[800]) {
  %p0 = f32[100]{0} parameter(0)
  %p1 = f32[10]{0} parameter(1)
  %all = f32[800]{0} all-gather(%p0), frontend_attributes={chain_id="0"}
  %work = f32[10]{0} negate(%p1)
  ROOT %t = (f32[10]{0}, f32[100]{0}, f32[800]{0}) tuple(%work, %p0, %all)
}
"""
    text = (
        fusion
        + fusion.replace("%first", "%second")
        + """
ENTRY %main (x: f32[100], y: f32[10]) -> f32[10] {
  %x = f32[100]{0} parameter(0)
  %y = f32[10]{0} parameter(1)
  %one = (f32[10]{0}, f32[100]{0}, f32[800]{0}) fusion(%x, %y), kind=kLoop, calls=%first
  %a = f32[10]{0} get-tuple-element(%one), index=0
  %b = f32[100]{0} get-tuple-element(%one), index=1
  %two = (f32[10]{0}, f32[100]{0}, f32[800]{0}) fusion(%b, %a), kind=kLoop, calls=%second
  ROOT %out = f32[10]{0} get-tuple-element(%two), index=0
}
"""
    )
    assert accessed_bytes(parse(text)) == 2 * (40 + 40) + (400 + 3200)


def test_shapes_are_padded_to_tiles():
    assert shape_bytes("bf16[3,200]{1,0:T(8,128)(2,1)}") == 8 * 256 * 2
    assert shape_bytes("f32[64,3]{0,1:T(8,128)}") == 8 * 128 * 4
    assert shape_bytes("(f32[4]{0}, s8[2,2]{1,0:T(8,128)S(1)})", slow_only=True) == 16


def test_bytes_of_a_program_of_this_machine():
    compiled = jax.jit(lambda x: jnp.tanh(x) * 2).lower(np.ones((64, 64), np.float32)).compile()
    assert accessed_bytes(parse(compiled.as_text())) == 2 * 64 * 64 * 4
