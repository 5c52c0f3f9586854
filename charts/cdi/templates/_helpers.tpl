{{/* "true" where this runs beside another CDI. */}}
{{- define "cdi.alongside" -}}
{{- if or .Values.alongside.namespaces .Values.alongside.selector }}true{{ end }}
{{- end }}

{{/* "true" where volumes can be uploaded to: the API of upload tokens is one of those things that a cluster has once. */}}
{{- define "cdi.uploads" -}}
{{- if and .Values.uploadProxy.create (not (include "cdi.alongside" .)) }}true{{ end }}
{{- end }}

{{/* "true" on OpenShift. */}}
{{- define "cdi.openshift" -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}true{{ end }}
{{- end }}

{{/* What names in the release's namespace begin with. */}}
{{- define "cdi.prefix" -}}
{{- if include "cdi.alongside" . }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}cdi{{ end }}
{{- end }}

{{/* What names of objects begin with that have no namespace. */}}
{{- define "cdi.clusterPrefix" -}}
{{- if include "cdi.alongside" . }}{{ printf "%s-%s" .Release.Namespace (include "cdi.prefix" .) }}{{ else }}cdi{{ end }}
{{- end }}

{{/* ClusterRole, ClusterRoleBinding and Role of the controller: those of KubeVirt's CDI unless that is there as well. */}}
{{- define "cdi.controllerClusterRole" -}}
{{- if include "cdi.alongside" . }}{{ include "cdi.clusterPrefix" . }}-controller{{ else }}cdi{{ end }}
{{- end }}
{{- define "cdi.controllerClusterRoleBinding" -}}
{{- if include "cdi.alongside" . }}{{ include "cdi.clusterPrefix" . }}-controller{{ else }}cdi-sa{{ end }}
{{- end }}
{{- define "cdi.controllerRole" -}}
{{- if include "cdi.alongside" . }}{{ include "cdi.prefix" . }}-controller{{ else }}cdi-deployment{{ end }}
{{- end }}

{{/* Secrets of the controller's making in the release's namespace: authorities, certificates and the key of tokens. */}}
{{- define "cdi.ownSecrets" -}}
{{- $prefix := include "cdi.prefix" . }}
{{- range list "uploadserver-signer" "uploadserver-client-signer" "uploadserver-client-cert" "uploadproxy-signer" "uploadproxy-server-cert" "api-signing-key" }}
- {{ $prefix }}-{{ . }}
{{- end }}
{{- end }}

{{/* ConfigMaps of its making there: whom to trust. */}}
{{- define "cdi.ownConfigMaps" -}}
{{- $prefix := include "cdi.prefix" . }}
{{- range list "uploadserver-signer-bundle" "uploadserver-client-signer-bundle" "uploadproxy-signer-bundle" }}
- {{ $prefix }}-{{ . }}
{{- end }}
{{- end }}

{{- define "cdi.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* Labels of every object, without the one that says which component of KubeVirt's CDI it stands for. */}}
{{- define "cdi.commonLabels" -}}
app.kubernetes.io/name: cdi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of every object. Tools find what KubeVirt's CDI consists of by the last one; beside another CDI it is the other's. */}}
{{- define "cdi.labels" -}}
{{- include "cdi.commonLabels" . }}
{{- if not (include "cdi.alongside" .) }}
cdi.kubevirt.io: ""
{{- end }}
{{- end }}

{{/* Labels of a Deployment, which are those of its pods: (dict "root" $ "name" LABEL). */}}
{{- define "cdi.deploymentLabels" -}}
{{- include "cdi.commonLabels" .root }}
{{- if not (include "cdi.alongside" .root) }}
app: containerized-data-importer
cdi.kubevirt.io: {{ .name }}
prometheus.cdi.kubevirt.io: "true"
{{- end }}
{{- end }}

{{/* Labels that tell one component's pods: (dict "root" $ "component" NAME). */}}
{{- define "cdi.selector" -}}
app.kubernetes.io/name: cdi
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Selects worker pods whose progress can be read, and no pod of the control plane. */}}
{{- define "cdi.workerSelector" -}}
matchLabels:
  app: containerized-data-importer
  prometheus.cdi.kubevirt.io: "true"
matchExpressions:
  - {key: cdi.kubevirt.io, operator: In, values: [importer, cdi-upload-server, cdi-clone-source]}
{{- end }}

{{/* A Deployment's pod, but for what is the component's own: (dict "root" $ "component" NAME "name" LABEL "account" NAME "annotations" DICT). */}}
{{- define "cdi.pod" -}}
{{- $values := get .root.Values .component -}}
metadata:
  labels:
    {{- include "cdi.selector" . | nindent 4 }}
    {{- if not (include "cdi.alongside" .root) }}
    {{- /* By these, people and tools find the pods of the cluster's CDI, and so do the Services and monitors of KubeVirt's
    CDI: beside another CDI, in its namespace too, they are for the other's pods. */}}
    app: containerized-data-importer
    cdi.kubevirt.io: {{ .name }}
    prometheus.cdi.kubevirt.io: "true"
    {{- end }}
    # By this, the policies of HyperConverged let a pod reach DNS and the Kubernetes API.
    np.kubevirt.io/allow-access-cluster-services: "true"
    {{- with .root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $required := dict }}
  {{- if include "cdi.openshift" .root }}
  {{- $required = dict "openshift.io/required-scc" "restricted-v2" }}
  {{- end }}
  {{- with merge (dict) (.annotations | default dict) $values.podAnnotations $required }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ .account }}
  {{- include "cdi.podSecurity" .root | nindent 2 }}
  {{- with .root.Values.infra.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .root.Values.infra.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.infra.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.infra.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.infra.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{- toYaml . | nindent 6 }}
      labelSelector:
        matchLabels:
          {{- include "cdi.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
{{- end }}

{{/* What a pod needs for the restricted Pod Security Standard, and its pull secrets. */}}
{{- define "cdi.podSecurity" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- /* OpenShift gives each namespace users of its own, and its restricted policy admits no other. */}}
  {{- if not (include "cdi.openshift" .) }}
  runAsUser: 107
  runAsGroup: 107
  fsGroup: 107
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/* The same of a container, its image, and a place for temporary files. */}}
{{- define "cdi.container" -}}
image: {{ include "cdi.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: temporary
    mountPath: /tmp
{{- end }}

{{- define "cdi.volumes" -}}
volumes:
  - name: temporary
    emptyDir:
      sizeLimit: 64Mi
{{- end }}

{{/* Labels as `k=v,…`. */}}
{{- define "cdi.selectorText" -}}
{{- $pairs := list }}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s=%s" $key $value) }}{{ end }}
{{- join "," $pairs }}
{{- end }}
