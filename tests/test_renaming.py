"""Any name survives TensorRT: of nodes, tensors, weights, inputs and outputs, anywhere in the graph."""

from __future__ import annotations

import onnx
import pytest
import tiny_models as tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trtlab as lab
from trtlab.draw.palette import readable_name
from trtlab.errors import BuildError
from trtlab.onnx_model import graphs, node_names
from trtlab.renaming import rename_for_build

ODD = [
    "a b", "conv[0]", "conv[0], [ONNX Layer: other]", "a, b", "x:0", "ünï→код", "名前", "a\nb", "a\tb", "\x1f",
    "a\x1eb", "quote'\"", "n" * 300, "é" * 300, "{ Name: q", "], Outputs: [", " ", ", LayerType: gemm", "[profile 1]",
    "z [profile 1]", "id_0", "id_7", "id__0", "/layer/0/Conv", "Conv_0", "a#2", "-1", "%d %s {0}", "\\1\\g<0>", "[",
    "]", "Parsing node: q [Conv]", "I/O Tensors:",
]  # fmt: skip

own = st.one_of(
    st.sampled_from(ODD), st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9)
)
node_lists = st.lists(st.one_of(own, st.sampled_from(["", "same"])), min_size=4, max_size=4)
tensor_lists = st.lists(own, min_size=7, max_size=7, unique=True)
quick = settings(deadline=None, max_examples=50, derandomize=True)
real = settings(
    deadline=None,
    max_examples=8,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def chain(nodes: list[str], tensors: list[str]) -> onnx.ModelProto:
    """Relu, MatMul, Tanh and Add under these names; `tensors` are input, three inner ones, output and two weights."""
    *edges, w, b = tensors
    made = [
        onnx.helper.make_node(op, [edges[index], *more], [edges[index + 1]], name=nodes[index])
        for index, (op, more) in enumerate((("Relu", []), ("MatMul", [w]), ("Tanh", []), ("Add", [b])))
    ]
    model = tiny.model(made, [tiny.value(edges[0], (2, 4))], "", [tiny.weight(w, 4, 4), tiny.weight(b, 4)])
    model.graph.output.append(tiny.value(edges[4], None))
    return model


def edges(graph: onnx.GraphProto) -> list[str]:
    return [name for node in graph.node for name in (*node.input, *node.output)]


@quick
@given(st.lists(st.one_of(own, st.sampled_from(["", "same", "same#2", "Relu_1"])), max_size=9))
def test_every_node_has_a_name_of_its_own(wanted: list[str]) -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"], name=n) for n in wanted], "g", [], [])
    names = node_names(graph)
    assert len(set(names)) == len(wanted)
    for index, name in enumerate(wanted):
        if name and name not in wanted[:index]:
            assert names[index] == name
        else:
            assert names[index].startswith(name or f"Relu_{index}")


@quick
@given(node_lists, tensor_lists)
def test_renaming_keeps_the_graph_and_can_be_undone(nodes: list[str], tensors: list[str]) -> None:
    model, before = chain(nodes, tensors), chain(nodes, tensors)
    names = rename_for_build(model)
    after = model.graph
    assert [value.name for value in (*after.input, *after.output)] == [tensors[0], tensors[4]]
    assert len({node.name for node in after.node}) == 4
    assert [names.nodes[node.name] for node in after.node] == node_names(before.graph)
    assert [names.own.get(name, name) for name in edges(after)] == edges(before.graph)
    assert [names.own.get(item.name, item.name) for item in after.initializer] == tensors[5:]
    assert len(set(edges(after)) | {item.name for item in after.initializer}) == 7


@pytest.mark.usefixtures("tidy")
@real
@given(node_lists, tensor_lists)
def test_real_engine_speaks_in_the_models_own_names(nodes: list[str], tensors: list[str]) -> None:
    model = chain(nodes, tensors)
    engine = lab.build(model, cache=False)
    assert [port.name for port in engine.ports] == [tensors[0], tensors[4]]
    assert tensors[0] in {tensor.name for layer in engine.layers for tensor in layer.inputs}
    assert tensors[4] in {tensor.name for layer in engine.layers for tensor in layer.outputs}
    table = engine.fate(model)
    assert table["node"].tolist() == node_names(model.graph)
    assert table["op"].tolist() == ["Relu", "MatMul", "Tanh", "Add"]
    assert table["layer"].notna().all()
    assert {name for layer in engine.layers for name in layer.onnx_nodes} == set(table["node"])


@pytest.mark.usefixtures("tidy")
def test_layer_is_called_by_the_names_of_its_nodes() -> None:
    model = tiny.conv()
    for node in model.graph.node:
        node.name = f"[{node.name}], 名前"
    found = {readable_name(layer) for layer in lab.build(model).layers}
    assert {"[conv1], 名前", "[conv2], 名前"} <= found, found


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    "name", ["a b", "conv[0], [ONNX Layer: other]", "名前", "a\x1eb", "n" * 300, "id_0", "\\1\\g<0>"]
)
def test_error_names_the_node_as_the_model_does(name: str) -> None:
    model = chain(["first", name, "third", "last"], ["x", "a", "b", "c", "y", "w", "v"])
    model.graph.initializer[0].CopyFrom(tiny.weight("w", 9, 9))
    with pytest.raises(BuildError) as caught:
        lab.build(model)
    assert f"'{name}' (MatMul)" in caught.value.message


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("make", "name"),
    [(tiny.branches, ""), (tiny.branches, "before"), (tiny.loop, "odd, [name]"), (tiny.function, "名前")],
)
def test_node_that_holds_a_graph_is_one_row(make: type, name: str) -> None:
    model = make(name)
    for graph in graphs(model.graph):
        for node in graph.node:
            node.output[:] = [
                f"odd [{output}], " if output.startswith(("yes", "next")) else output for output in node.output
            ]
        for value in graph.output:
            value.name = f"odd [{value.name}], " if value.name.startswith(("yes", "next")) else value.name
    table = lab.build(model).fate(model)
    assert len(table) == len(model.graph.node)
    assert len(set(table["node"])) == len(table)
    if make is not tiny.function:
        assert table["op"].tolist() == [node.op_type for node in model.graph.node]
        holder = table[table["op"].isin(["If", "Loop"])].iloc[0]
        assert holder["node"] == (name if name != "before" or make is tiny.loop else "before#2") or not name
        assert holder["layer"] is not None


@pytest.mark.usefixtures("tidy")
def test_unnamed_nodes_inside_a_branch_count_for_the_node_that_holds_it() -> None:
    model = tiny.branches()
    for graph in graphs(model.graph):
        graph.name = "odd [graph] | "
        for node in graph.node:
            node.name = ""
    engine = lab.build(model)
    named = {name for layer in engine.layers for name in layer.onnx_nodes}
    assert "If_3" in named
    assert named <= set(engine.fate(model)["node"])
