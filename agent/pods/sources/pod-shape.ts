import type { Shape } from "./shape.ts";

/** The fields of a Pod that the node reads, as shapes: what agent/kube/types.ts promises to the rest of the agent. */

const keys = (...fields: string[]): Record<string, Shape> => Object.fromEntries(fields.map((name) => [name, "text"]));
const texts: Shape = { list: "text" };
const labels: Shape = { map: "text" };
const quantities: Shape = { map: "quantity" };

const resources: Shape = {
  fields: { requests: quantities, limits: quantities, claims: { list: { fields: keys("name", "request") } } },
};
const seLinuxOptions: Shape = { fields: keys("user", "role", "type", "level") };
const profile: Shape = { fields: keys("type", "localhostProfile") };
const securityContext: Shape = {
  fields: {
    runAsUser: "integer",
    runAsGroup: "integer",
    runAsNonRoot: "flag",
    privileged: "flag",
    readOnlyRootFilesystem: "flag",
    allowPrivilegeEscalation: "flag",
    capabilities: { fields: { add: texts, drop: texts } },
    procMount: "text",
    seLinuxOptions,
    seccompProfile: profile,
    appArmorProfile: profile,
  },
};
const podSecurityContext: Shape = {
  fields: {
    runAsUser: "integer",
    runAsGroup: "integer",
    runAsNonRoot: "flag",
    fsGroup: "integer",
    fsGroupChangePolicy: "text",
    supplementalGroups: { list: "integer" },
    supplementalGroupsPolicy: "text",
    sysctls: { list: { fields: keys("name", "value") } },
    seLinuxOptions,
    seccompProfile: profile,
    appArmorProfile: profile,
  },
};

const handler: Record<string, Shape> = {
  exec: { fields: { command: texts } },
  httpGet: {
    fields: {
      path: "text",
      port: "textOrInteger",
      host: "text",
      scheme: "text",
      httpHeaders: { list: { fields: keys("name", "value") } },
    },
  },
  tcpSocket: { fields: { port: "textOrInteger", host: "text" } },
  sleep: { fields: { seconds: "integer" } },
};
const probe: Shape = {
  fields: {
    ...handler,
    grpc: { fields: { port: "integer", service: "text" } },
    initialDelaySeconds: "integer",
    timeoutSeconds: "integer",
    periodSeconds: "integer",
    successThreshold: "integer",
    failureThreshold: "integer",
    terminationGracePeriodSeconds: "integer",
  },
};

const fieldRef: Shape = { fields: keys("apiVersion", "fieldPath") };
const resourceFieldRef: Shape = { fields: { ...keys("containerName", "resource"), divisor: "quantity" } };
const keySelector: Shape = { fields: { ...keys("name", "key"), optional: "flag" } };
const objectRef: Shape = { fields: { name: "text", optional: "flag" } };

const container: Shape = {
  fields: {
    ...keys("name", "image", "workingDir", "restartPolicy", "terminationMessagePath", "terminationMessagePolicy"),
    imagePullPolicy: "text",
    targetContainerName: "text",
    command: texts,
    args: texts,
    ports: {
      list: { fields: { ...keys("name", "hostIP", "protocol"), containerPort: "integer", hostPort: "integer" } },
    },
    env: {
      list: {
        fields: {
          ...keys("name", "value"),
          valueFrom: {
            fields: {
              fieldRef,
              resourceFieldRef,
              configMapKeyRef: keySelector,
              secretKeyRef: keySelector,
              fileKeyRef: { fields: { ...keys("volumeName", "path", "key"), optional: "flag" } },
            },
          },
        },
      },
    },
    envFrom: { list: { fields: { prefix: "text", configMapRef: objectRef, secretRef: objectRef } } },
    resources,
    resizePolicy: { list: { fields: keys("resourceName", "restartPolicy") } },
    restartPolicyRules: {
      list: {
        fields: { action: "text", exitCodes: { fields: { operator: "text", values: { list: "integer" } } } },
      },
    },
    volumeMounts: {
      list: {
        fields: {
          ...keys("name", "mountPath", "recursiveReadOnly", "subPath", "subPathExpr", "mountPropagation"),
          readOnly: "flag",
        },
      },
    },
    volumeDevices: { list: { fields: keys("name", "devicePath") } },
    livenessProbe: probe,
    readinessProbe: probe,
    startupProbe: probe,
    lifecycle: { fields: { postStart: { fields: handler }, preStop: { fields: handler }, stopSignal: "text" } },
    securityContext,
    stdin: "flag",
    stdinOnce: "flag",
    tty: "flag",
  },
};

const items: Shape = { list: { fields: { ...keys("key", "path"), mode: "integer" } } };
const downwardItems: Shape = {
  list: { fields: { path: "text", mode: "integer", fieldRef, resourceFieldRef } },
};
const volume: Shape = {
  fields: {
    name: "text",
    emptyDir: { fields: { medium: "text", sizeLimit: "quantity" } },
    hostPath: { fields: keys("path", "type") },
    downwardAPI: { fields: { items: downwardItems, defaultMode: "integer" } },
    configMap: { fields: { name: "text", items, defaultMode: "integer", optional: "flag" } },
    secret: { fields: { secretName: "text", items, defaultMode: "integer", optional: "flag" } },
    projected: {
      fields: {
        defaultMode: "integer",
        sources: { list: { fields: { downwardAPI: { fields: { items: downwardItems } } } } },
      },
    },
  },
};

const selectorTerms: Shape = {
  list: { fields: { matchExpressions: { list: requirement() }, matchFields: { list: requirement() } } },
};

function requirement(): Shape {
  return { fields: { ...keys("key", "operator"), values: texts } };
}

const spec: Shape = {
  fields: {
    ...keys(
      "nodeName",
      "restartPolicy",
      "dnsPolicy",
      "serviceAccountName",
      "serviceAccount",
      "hostname",
      "hostnameOverride",
      "subdomain",
    ),
    ...keys("priorityClassName", "runtimeClassName", "schedulerName"),
    containers: { list: container },
    initContainers: { list: container },
    ephemeralContainers: { list: container },
    volumes: { list: volume },
    terminationGracePeriodSeconds: "integer",
    activeDeadlineSeconds: "integer",
    dnsConfig: {
      fields: { nameservers: texts, searches: texts, options: { list: { fields: keys("name", "value") } } },
    },
    automountServiceAccountToken: "flag",
    hostNetwork: "flag",
    hostPID: "flag",
    hostIPC: "flag",
    hostUsers: "flag",
    shareProcessNamespace: "flag",
    setHostnameAsFQDN: "flag",
    enableServiceLinks: "flag",
    securityContext: podSecurityContext,
    imagePullSecrets: { list: { fields: keys("name") } },
    hostAliases: { list: { fields: { ip: "text", hostnames: texts } } },
    priority: "integer",
    overhead: quantities,
    resources,
    readinessGates: { list: { fields: keys("conditionType") } },
    tolerations: { list: { fields: { ...keys("key", "operator", "value", "effect"), tolerationSeconds: "integer" } } },
    nodeSelector: labels,
    affinity: {
      fields: {
        nodeAffinity: {
          fields: {
            requiredDuringSchedulingIgnoredDuringExecution: { fields: { nodeSelectorTerms: selectorTerms } },
          },
        },
      },
    },
    os: { fields: keys("name") },
  },
};

export const podShape: Shape = {
  fields: {
    ...keys("apiVersion", "kind"),
    metadata: { fields: { ...keys("name", "namespace", "uid", "generateName"), labels, annotations: labels } },
    spec,
  },
};
