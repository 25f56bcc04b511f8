#!/usr/bin/env bash
# Makes what is missing of the cluster's authority, certificates and kubeconfig files.
# shellcheck source=SCRIPTDIR/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
mkdir -p "$pki"
cd "$pki"

key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1.key" 2>/dev/null; }

cert() { # NAME SUBJECT [SUBJECT-ALTERNATIVE-NAMES]
    [ ! -f "$1.crt" ] || return 0
    key "$1"
    openssl req -new -key "$1.key" -subj "$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" -extfile \
            <(printf 'keyUsage=digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n%s' "${3:+subjectAltName=$3}") 2>/dev/null
}

kubeconfig() { # NAME FILE
    cat >"$2" <<K
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "https://$(node_ip 1):6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: e2e, context: {cluster: e2e, user: $1}}]
current-context: e2e
K
}

[ -f ca.crt ] || {
    key ca
    openssl req -x509 -key ca.key -out ca.crt -days 3650 -subj /CN=sharded-etcd-e2e \
        -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign
}
[ -f sa.pub ] || {
    key sa
    openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
}
service=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
cert apiserver /CN=kube-apiserver "$service,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$(node_ip 1)"
cert admin /O=system:masters/CN=admin
cert front-proxy /CN=front-proxy
cert controller-manager /CN=system:kube-controller-manager
cert scheduler /CN=system:kube-scheduler
cert proxy /CN=system:kube-proxy
for user in controller-manager scheduler proxy; do kubeconfig $user $user.kubeconfig; done
for n in $(seq "$nodes"); do
    cert "node$n" "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:$(node_ip "$n")"
    kubeconfig "node$n" "node$n.kubeconfig"
done
kubeconfig admin "$KUBECONFIG"
