"""Loads SavedModels as a model server does, without TensorFlow's Python or any project code.

    python -I export/c_session.py LIBRARY_DIR PACKAGES_DIR JOB.pkl ANSWER.pkl

PACKAGES_DIR is where NumPy is installed. TensorFlow's C API does what TensorFlow Serving's C++
does: LoadSavedModel with the tags {serve}, the restore op, the init op, then Session::Run. A job
is a dict of `directories` (name to version directory), `config` (a serialized ConfigProto, or
empty), `requests`, a list of (name, feeds, fetches) with feeds [(tensor name, TF_DataType,
array)] and fetches [tensor name], `warm_up` and `rounds`. The requests are run in their order,
`warm_up` + `rounds` times. The answer is a dict of
`load` (name to what was wrong, empty if nothing), `ops` (the serialized OpList of TensorFlow's own
operations), `outputs` (the first round's arrays, or the error's text, by request) and `seconds`
(lists of the rounds' times, by request). Strings are object arrays of bytes.
"""

import ctypes
import math
import pathlib
import pickle
import sys
import time

if __name__ == "__main__":
    sys.path.append(sys.argv[2])

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

    def __init__(self, library, version_dir, config=b""):
        self.library = library
        self.status = self.call("NewStatus", Pointer)
        self.graph = self.call("NewGraph", Pointer)
        options = self.call("NewSessionOptions", Pointer)
        if config:
            size = ctypes.c_size_t(len(config))
            self.checked("SetConfig", None, options, ctypes.c_char_p(config), size)
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

    def prepare(self, feeds, fetches):
        """A function that runs these feeds and returns the fetched arrays."""
        inputs = (Output * len(feeds))(*[self.output(name) for name, _, _ in feeds])
        values = (Pointer * len(feeds))(*[self.tensor(dtype, array) for _, dtype, array in feeds])
        outputs = (Output * len(fetches))(*[self.output(name) for name in fetches])
        results = (Pointer * len(fetches))()

        def run():
            self.checked(
                "SessionRun",
                None,
                *(self.session, None),
                *(inputs, values, len(feeds)),
                *(outputs, results, len(fetches)),
                *(None, 0, None),
            )
            return results

        def fetch():
            arrays = [self.array(result) for result in run()]
            self.release(results)
            return arrays

        return run, fetch

    def release(self, tensors):
        """Gives the memory of results back."""
        for tensor in tensors:
            self.call("DeleteTensor", None, Pointer(tensor))


def as_argument(value):
    """Large integers are addresses."""
    return Pointer(value) if isinstance(value, int) and value > 2**31 else value


def load_library(directory):
    """TensorFlow's C API."""
    libraries = pathlib.Path(directory)
    ctypes.CDLL(str(libraries / "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(libraries / "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = [("data", Pointer), ("length", ctypes.c_size_t), ("deallocator", Pointer)]


def known_operations(library):
    """The serialized OpList of the operations that this TensorFlow has."""
    library.TF_GetAllOpList.restype = ctypes.POINTER(Buffer)
    buffer = library.TF_GetAllOpList().contents
    return ctypes.string_at(buffer.data, buffer.length)


def answer(library, job):
    """Runs a job; see the module's docstring."""
    sessions, load = {}, {}
    for name, directory in job["directories"].items():
        try:
            sessions[name], load[name] = Session(library, directory, job["config"]), ""
        except RuntimeError as error:
            load[name] = str(error)
    calls: list = []
    outputs: list = []
    for name, feeds, fetches in job["requests"]:
        try:
            if name not in sessions:
                raise RuntimeError(load[name])
            run, fetch = sessions[name].prepare(feeds, fetches)
            outputs.append(fetch())
            calls.append((sessions[name], run))
        except RuntimeError as error:
            outputs.append(str(error))
            calls.append(None)
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(job["warm_up"] + job["rounds"]):
        for call, times in zip(calls, seconds, strict=True):
            if call is not None:
                session, run = call
                started = time.perf_counter()
                results = run()
                elapsed = time.perf_counter() - started
                session.release(results)
                if number >= job["warm_up"]:
                    times.append(elapsed)
    operations = known_operations(library)
    return {"load": load, "ops": operations, "outputs": outputs, "seconds": seconds}


def main(library_dir, packages_dir, job, result):
    """Reads a job, runs it and writes the answer."""
    given = pickle.loads(pathlib.Path(job).read_bytes())
    done = answer(load_library(library_dir), given)
    if "tensorflow" in sys.modules:
        raise RuntimeError("TensorFlow's Python was imported, and a server has none")
    pathlib.Path(result).write_bytes(pickle.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
