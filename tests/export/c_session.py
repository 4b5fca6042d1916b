"""Loads a SavedModel as a model server does, in a process without TensorFlow's Python.

    python c_session.py LIBRARY_DIR VERSION_DIR JOB.pkl ANSWER.pkl

TensorFlow's C API does what TensorFlow Serving's C++ does: LoadSavedModel with the tags {serve},
the restore op, the init op, then Session::Run. A job is a list of ([(tensor name, TF_DataType,
array)], [tensor name]), an answer the list of the arrays; strings are object arrays of bytes.
"""

import ctypes
import math
import pathlib
import pickle
import sys

import numpy as np

STRING = 7
STRING_BYTES = 24
TYPES = {1: np.float32, 3: np.int32, 4: np.uint8, 9: np.int64, 10: np.bool_}
Pointer = ctypes.c_void_p


class Output(ctypes.Structure):
    """TF_Output."""

    _fields_ = [("operation", Pointer), ("index", ctypes.c_int)]


class Session:
    """A loaded SavedModel."""

    def __init__(self, library_dir, version_dir):
        libraries = pathlib.Path(library_dir)
        ctypes.CDLL(str(libraries / "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(libraries / "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
        self.status = self.call("NewStatus", Pointer)
        self.graph = self.call("NewGraph", Pointer)
        options = self.call("NewSessionOptions", Pointer)
        tags = (ctypes.c_char_p * 1)(b"serve")
        path = str(version_dir).encode()
        self.session = self.checked(
            "LoadSessionFromSavedModel", Pointer, options, None, path, tags, 1, self.graph, None
        )

    def call(self, name, result, *arguments):
        """Calls TF_name; Python integers are passed as they are, pointers as pointers."""
        function = getattr(self.library, f"TF_{name}")
        function.restype = result
        return function(*arguments)

    def checked(self, name, result, *arguments):
        """Calls a function whose last argument is a status, and raises if that is not OK."""
        value = self.call(name, result, *map(as_argument, arguments), Pointer(self.status))
        if self.call("GetCode", ctypes.c_int, Pointer(self.status)):
            message = self.call("Message", ctypes.c_char_p, Pointer(self.status))
            raise RuntimeError(message.decode())
        return value

    def output(self, name):
        """The graph's tensor of a name such as "x:0"."""
        operation, _, index = name.partition(":")
        found = self.call("GraphOperationByName", Pointer, Pointer(self.graph), operation.encode())
        if not found:
            raise RuntimeError(f"no tensor {name} in the graph")
        return Output(found, int(index or 0))

    def tensor(self, dtype, array):
        """A TF_Tensor with the array's values."""
        array = np.asarray(array)
        dims = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
        size = STRING_BYTES * array.size if dtype == STRING else array.nbytes
        made = self.call("AllocateTensor", Pointer, dtype, dims, array.ndim, ctypes.c_size_t(size))
        data = self.call("TensorData", Pointer, Pointer(made))
        if dtype == STRING:
            for index, item in enumerate(array.ravel()):
                place = Pointer(data + STRING_BYTES * index)
                self.call("StringInit", None, place)
                self.call("StringCopy", None, place, bytes(item), ctypes.c_size_t(len(item)))
        else:
            content = np.ascontiguousarray(array, TYPES[dtype]).tobytes()
            ctypes.memmove(data, content, len(content))
        return made

    def array(self, tensor):
        """The values of a TF_Tensor."""
        tensor = Pointer(tensor)
        rank = self.call("NumDims", ctypes.c_int, tensor)
        shape = [self.call("Dim", ctypes.c_int64, tensor, axis) for axis in range(rank)]
        dtype = self.call("TensorType", ctypes.c_int, tensor)
        data = self.call("TensorData", Pointer, tensor)
        if dtype == STRING:
            items = []
            for index in range(math.prod(shape)):
                place = Pointer(data + STRING_BYTES * index)
                start = self.call("StringGetDataPointer", Pointer, place)
                size = self.call("StringGetSize", ctypes.c_size_t, place)
                items.append(ctypes.string_at(start, size))
            return np.array(items, object).reshape(shape)
        size = self.call("TensorByteSize", ctypes.c_size_t, tensor)
        return np.frombuffer(ctypes.string_at(data, size), TYPES[dtype]).reshape(shape)

    def run(self, feeds, fetches):
        """Session::Run."""
        inputs = (Output * len(feeds))(*[self.output(name) for name, _, _ in feeds])
        values = (Pointer * len(feeds))(*[self.tensor(dtype, array) for _, dtype, array in feeds])
        outputs = (Output * len(fetches))(*[self.output(name) for name in fetches])
        results = (Pointer * len(fetches))()
        self.checked(
            "SessionRun",
            None,
            *(self.session, None),
            *(inputs, values, len(feeds)),
            *(outputs, results, len(fetches)),
            *(None, 0, None),
        )
        return [self.array(result) for result in results]


def as_argument(value):
    """Large integers are addresses."""
    return Pointer(value) if isinstance(value, int) and value > 2**31 else value


def main(library_dir, version_dir, job, answer):
    """Runs the job and writes the answer."""
    session = Session(library_dir, version_dir)
    requests = pickle.loads(pathlib.Path(job).read_bytes())
    answers = [session.run(feeds, fetches) for feeds, fetches in requests]
    assert "tensorflow" not in sys.modules
    pathlib.Path(answer).write_bytes(pickle.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
