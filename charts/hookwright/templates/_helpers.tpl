{{- define "hookwright.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "hookwright.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hookwright.selectorLabels" -}}
app.kubernetes.io/name: {{ include "hookwright.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hookwright.labels" -}}
{{ include "hookwright.baseLabels" . }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "hookwright.frontLabels" -}}
{{ include "hookwright.baseLabels" . }}
app.kubernetes.io/component: front
{{- end }}

{{- define "hookwright.baseLabels" -}}
{{ include "hookwright.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: hookwright
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "hookwright.serviceAccountName" -}}
{{- default (include "hookwright.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "hookwright.frontServiceAccountName" -}}
{{- default (printf "%s-front" (include "hookwright.fullname" .)) .Values.front.serviceAccount.name }}
{{- end }}

{{- define "hookwright.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end }}
