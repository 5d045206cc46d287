"""Run snippets beside the functions of a notebook: run_snippets.py NOTEBOOK JSON; prints what each of them prints."""

import ast
import contextlib
import io
import json
import sys

import chapter03
import nbformat
import numpy as np
import polygraphy.cuda.cuda
import stand_in_cuda
from onnx.reference import ReferenceEvaluator
from polygraphy.backend.trt import EngineFromBytes, TrtRunner

import trtlab as lab
from trtlab import trt  # before Polygraphy, which it tells which TensorRT to take
from trtlab.toys import PATTERNS

assert trt.__version__ == "10.0.stand.in"
space = {"trt": trt, "lab": lab, "chapter03": chapter03, "logger": trt.Logger(), "contextlib": contextlib}
space |= {"cuda": polygraphy.cuda, "EngineFromBytes": EngineFromBytes, "TrtRunner": TrtRunner}
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell.cell_type == "code":
        for node in ast.parse(cell.source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                exec(compile(ast.Module([node], []), "cell", "exec"), space)
model = PATTERNS["Conv + ReLU"].model()
plan = lab.build(model).plan_bytes()
(port,) = model.graph.input
x = np.random.default_rng(0).normal(size=[d.dim_value for d in port.type.tensor_type.shape.dim]).astype(np.float32)
feeds = {port.name: x}
(truth,) = ReferenceEvaluator(model).run(None, feeds)
name = model.graph.output[0].name
said = {}
for title, code in json.loads(sys.argv[2]).items():
    cuda = polygraphy.cuda.cuda.G_CUDA = stand_in_cuda.Cuda()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec(code)
        except Exception as error:
            print(repr(error))
    said[title] = printed.getvalue().splitlines()
print(json.dumps(said))
