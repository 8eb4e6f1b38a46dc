{{- define "im-operator.match" -}}
app.kubernetes.io/name: im-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}
{{- define "im-operator.labels" -}}
{{ include "im-operator.match" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "im-operator.name" -}}
{{ printf "%s-im-operator" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- define "im-operator.webhook-secret" -}}
{{ .Values.webhook.secret | default (printf "%s-webhook" (include "im-operator.name" .)) }}
{{- end }}
{{- /* What it needs where it works: to make its objects, and to see those that change. */ -}}
{{- define "im-operator.rules" -}}
- apiGroups: [imctl.dev]
  resources: [regions, idcs, imclusters, gatewayclusters, routeclusters, witnesses, trafficoperations, drills, drillruns, replications, geopolicies]
  verbs: [get, list, watch]
- apiGroups: [imctl.dev]
  resources:
    - regions/status
    - idcs/status
    - imclusters/status
    - gatewayclusters/status
    - routeclusters/status
    - witnesses/status
    - trafficoperations/status
    - drills/status
    - drillruns/status
    - replications/status
    - geopolicies/status
  verbs: [patch]
# The finalizers of IDCs that are drained, of what their drain needs, and of runs that are undone, before they go.
- apiGroups: [imctl.dev]
  resources: [idcs, regions, gatewayclusters, drillruns]
  verbs: [patch]
- apiGroups: [imctl.dev]  # its objects block the deletion of their owner until they are gone
  resources:
    - idcs/finalizers
    - imclusters/finalizers
    - gatewayclusters/finalizers
    - routeclusters/finalizers
    - witnesses/finalizers
    - replications/finalizers
  verbs: [update]
- apiGroups: [""]
  resources: [services]  # that of a gateway goes with it
  verbs: [list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [apps]  # of route instances; and MirrorMaker 2, where Strimzi is not
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kafka.strimzi.io]  # and where it is
  resources: [kafkamirrormaker2s]
  verbs: [get, list, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, create, patch, delete]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [list, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, create, patch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, create, patch, delete]
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [list, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- if .Values.drills.enabled }}
- apiGroups: [imctl.dev]  # of a Drill, at its times
  resources: [drillruns]
  verbs: [create, delete]
- apiGroups: [""]  # to kill what runs in a pod, to take the pod away, and to delete an IDC's data
  resources: [pods/exec]
  verbs: [get, create]
- apiGroups: [""]  # why an IDC does not serve, or its data were not deleted
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [pods]
  verbs: [create, patch, delete]
{{- end }}
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}
