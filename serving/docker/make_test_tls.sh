#!/bin/sh
# Makes a certificate authority and certificates for tests of TLS, with openssl.
#
#   serving/docker/make_test_tls.sh DIRECTORY [SERVER_NAME_OR_ADDRESS...]
#
# Writes ca.pem, server.pem and server.key, client.pem and client.key, and ssl.config for
# tensorflow_model_server --ssl_config_file, which requires a certificate of clients. The names
# default to localhost and 127.0.0.1. The authority's key is deleted, so it signs nothing else. All
# certificates expire after 30 days. In production, certificates come from your own authority.
set -eu

if [ $# -lt 1 ]; then
  echo "usage: make_test_tls.sh DIRECTORY [SERVER_NAME_OR_ADDRESS...]" >&2
  exit 2
fi
directory=$1
shift
[ $# -gt 0 ] || set -- localhost 127.0.0.1
if [ -e "$directory" ]; then
  echo "make_test_tls.sh: the directory must not exist yet, and '$directory' does" >&2
  exit 1
fi
umask 077
mkdir -p "$directory"
cd "$directory"
trap 'rm -f ca.key ca.srl -- *.csr *.ext' EXIT

names=
for name; do
  case $name in
    *:*) kind=IP ;;
    *[!0-9.]*) kind=DNS ;;
    *) kind=IP ;;
  esac
  names=${names:+$names,}$kind:$name
done

openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 30 \
  -subj "/CN=GaterNet test authority" 2>/dev/null

sign() {
  openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$2" 2>/dev/null
  printf '%s\n' "basicConstraints=CA:FALSE" "extendedKeyUsage=$3" "subjectAltName=$4" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
    -extfile "$1.ext" -out "$1.pem" 2>/dev/null
}
sign server "$1" serverAuth "$names"
sign client "GaterNet test client" clientAuth "DNS:client"

text() {
  awk '{ printf "%s\\n", $0 }' "$1"
}
cat > ssl.config <<CONFIG
server_key: "$(text server.key)"
server_cert: "$(text server.pem)"
custom_ca: "$(text ca.pem)"
client_verify: true
CONFIG
# The server in the container runs as another user. The directory itself stays closed to others.
chmod 644 ssl.config ca.pem server.pem client.pem
