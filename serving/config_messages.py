"""Messages of TensorFlow Serving's configuration files that tensorflow-serving-api leaves out.

Only the model list is in that package. These have the names, fields and numbers of the server's
session_bundle_config.proto, monitoring_config.proto and ssl_config.proto, so that a text file which
parses here parses there and the other way round. The package is ours, beside theirs in a process.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

PACKAGE = "gaternet.serving.config"
_WRAPPED = f".{wrappers_pb2.DESCRIPTOR.package}."
_FIELDS = {
    "BatchingParameters": {
        "max_batch_size": (1, "Int64Value"),
        "batch_timeout_micros": (2, "Int64Value"),
        "max_enqueued_batches": (3, "Int64Value"),
        "num_batch_threads": (4, "Int64Value"),
        "thread_pool_name": (5, "StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, "BoolValue"),
        "max_execution_batch_size": (9, "Int64Value"),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, f".{PACKAGE}.PrometheusConfig")},
    "SSLConfig": {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    field = descriptor_pb2.FieldDescriptorProto
    scalars = {"int64": field.TYPE_INT64, "bool": field.TYPE_BOOL, "string": field.TYPE_STRING}
    file = descriptor_pb2.FileDescriptorProto(
        name="gaternet/serving/config.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message, fields in _FIELDS.items():
        added = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            kind = kind.removeprefix("repeated ")
            label = field.LABEL_REPEATED if kind != fields[name][1] else field.LABEL_OPTIONAL
            one = added.field.add(name=name, number=number, label=label)
            if kind in scalars:
                one.type = scalars[kind]
            else:
                one.type = field.TYPE_MESSAGE
                one.type_name = kind if kind.startswith(".") else _WRAPPED + kind
    return file


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_file().SerializeToString())
_messages = message_factory.GetMessageClassesForFiles([_file().name], _pool)
BatchingParameters = _messages[f"{PACKAGE}.BatchingParameters"]
MonitoringConfig = _messages[f"{PACKAGE}.MonitoringConfig"]
SSLConfig = _messages[f"{PACKAGE}.SSLConfig"]
