{{/* What objects are called. */}}
{{- define "edgemux.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a pod is found by; must not change in the life of a release. */}}
{{- define "edgemux.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "edgemux.labels" -}}
{{ include "edgemux.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: cloud
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "edgemux.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "edgemux.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "edgemux.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "edgemux.tlsSecret" -}}
{{- default (printf "%s-tls" (include "edgemux.fullname" .)) .Values.tls.existingSecret -}}
{{- end -}}

{{- define "edgemux.tokenSecret" -}}
{{- default (printf "%s-token" (include "edgemux.fullname" .)) .Values.token.existingSecret -}}
{{- end -}}

{{/* What cannot be said by the schema. */}}
{{- define "edgemux.check" -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) -}}
{{- if not (and .Values.tls.cert .Values.tls.key) -}}
{{- fail "tls.enabled: give tls.existingSecret, or tls.cert and tls.key" -}}
{{- end -}}
{{- if .Values.tls.clientCaKey -}}
{{- fail "tls.clientCaKey: names a key of tls.existingSecret, which is empty" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.clientCaKey (not .Values.tls.enabled) -}}
{{- fail "tls.clientCaKey: needs tls.enabled" -}}
{{- end -}}
{{- if and .Values.token.enabled (not .Values.token.existingSecret) (not .Values.token.tokens) -}}
{{- fail "token.enabled: give token.existingSecret or token.tokens" -}}
{{- end -}}
{{- if and .Values.token.enabled (not .Values.tls.enabled) -}}
{{- fail "token.enabled: a token is worth nothing in plaintext; enable tls too" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.tls.enabled (not .Values.tls.existingSecret) (not .Values.tls.ca) -}}
{{- fail "serviceMonitor.enabled: whom is Prometheus to trust? give tls.ca" -}}
{{- end -}}
{{- if and .Values.model.initImage (contains "/" .Values.model.path) -}}
{{- fail "model.path: one folder, where it is copied from model.initImage" -}}
{{- end -}}
{{- if not (or .Values.model.existingClaim .Values.model.initImage) -}}
{{- fail "model: give model.existingClaim or model.initImage" -}}
{{- end -}}
{{- end -}}

{{/* What kubelet asks; with clients' certificates it has none to show, and a command in the pod asks instead. */}}
{{- define "edgemux.probe" -}}
{{- $path := index . 1 -}}
{{- with index . 0 -}}
{{- if .Values.tls.clientCaKey -}}
exec:
  command:
    - edgemux
    - ready
    - 127.0.0.1:{{ .Values.ports.http }}
    - --tls-ca=/run/secrets/tls/{{ .Values.tls.caKey }}
    - --tls-cert=/run/secrets/tls/tls.crt
    - --tls-key=/run/secrets/tls/tls.key
    - --server-name={{ .Values.tls.serverName }}
{{- else -}}
httpGet:
  port: http
  path: {{ $path }}
  scheme: {{ ternary "HTTPS" "HTTP" .Values.tls.enabled }}
{{- end -}}
{{- end -}}
{{- end -}}
