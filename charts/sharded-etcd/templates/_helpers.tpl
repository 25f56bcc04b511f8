{{/* Name of the operator's objects. */}}
{{- define "sharded-etcd.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- printf "%s-operator" (.Release.Name | trunc 54 | trimSuffix "-") -}}
{{- else -}}
{{- printf "%s-sharded-etcd-operator" (.Release.Name | trunc 41 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* Labels by which the operator's pods are found; they never change. */}}
{{- define "sharded-etcd.selectorLabels" -}}
app.kubernetes.io/name: sharded-etcd
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of everything. */}}
{{- define "sharded-etcd.labels" -}}
{{ include "sharded-etcd.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Image of the operator and of the pods that it makes. */}}
{{- define "sharded-etcd.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (printf "v%s" .Chart.AppVersion)) -}}
{{- end -}}
{{- end -}}

{{/* Name of the service account. */}}
{{- define "sharded-etcd.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "sharded-etcd.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* Rights in the namespaces of the resources. The operator reads no Secrets, and its pods' service accounts get none. */}}
{{- define "sharded-etcd.rules" -}}
- apiGroups: [shardedetcd.io]
  resources: [shardedetcds]
  verbs: [get, list, watch]
- apiGroups: [shardedetcd.io]
  resources: [shardedetcds/status]
  verbs: [patch]
# For owner references that hold up the owner's deletion, where the API server asks for it.
- apiGroups: [shardedetcd.io]
  resources: [shardedetcds/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps, serviceaccounts, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Members are made anew one at a time; volumes grow, and go with their shard.
- apiGroups: [""]
  resources: [persistentvolumeclaims, pods]
  verbs: [get, list, watch, patch, delete]
# Why pods or volumes cannot be made.
- apiGroups: [""]
  resources: [events]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* Rights beside namespaces: to say which class is not there. */}}
{{- define "sharded-etcd.clusterRules" -}}
- apiGroups: [storage.k8s.io]
  resources: [storageclasses]
  verbs: [get, list, watch]
- apiGroups: [scheduling.k8s.io]
  resources: [priorityclasses]
  verbs: [get]
{{- end -}}
