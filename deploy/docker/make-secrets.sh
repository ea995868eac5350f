#!/bin/sh
# An authority of its own, certificates for the services `cloud` and `agent`, and a token, for compose.secure.yaml.
#   deploy/docker/make-secrets.sh DIR
# Run again, it changes nothing that is there. Certificates last a year: take them away and run it again.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
command -v openssl >/dev/null || { echo "$0: openssl is missing" >&2; exit 2; }
# The folder is for its owner alone. The files are for all users, since containers run as several, and see the files only.
mkdir -p "$1"
chmod 0700 "$1"
cd "$1"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

if [ ! -e ca.pem ]; then
  key ca.key
  openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=edgemux compose" -out ca.pem
fi
for name in cloud agent; do
  [ ! -e "$name.pem" ] || continue
  key "$name.key"
  openssl req -new -key "$name.key" -subj "/CN=$name" -addext "subjectAltName=DNS:$name,DNS:localhost" -out "$name.csr"
  openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -days 365 \
    -out "$name.pem" 2>/dev/null
  rm "$name.csr"
done
[ -e token ] || openssl rand -hex 24 >token
chmod 0644 ./*.pem cloud.key agent.key token
chmod 0600 ca.key
echo "certificates and a token are in $1"
