import { describe, expect, test } from "vitest";
import { isCriticalPod, isMirrorPod, isStaticPod } from "../../../../agent/kube/pod-resources.ts";
import type { Pod } from "../../../../agent/kube/types.ts";
import { buildStaticPod } from "../../../../agent/pods/sources/static-pod.ts";
import { manifestOf, options, staticPodOf } from "./support.ts";

const file = { source: "file", origin: "/m/web.yaml" } as const;
const build = (manifest: Pod, place: Parameters<typeof buildStaticPod>[1] = file) =>
  buildStaticPod(manifest, place, options, Date.UTC(2026, 0, 2, 3, 4, 5, 6));

describe("identity", () => {
  test("the pod is named after the node and carries where it is from", () => {
    const pod = build(manifestOf({}, { labels: { a: "b" }, annotations: { c: "d" } }));
    const uid = pod.metadata.uid ?? "";
    expect(uid).toMatch(/^[0-9a-f]{32}$/);
    expect(pod.metadata).toEqual({
      name: "web-node-1",
      namespace: "default",
      uid,
      labels: { a: "b" },
      annotations: {
        c: "d",
        "kubernetes.io/config.hash": uid,
        "kubernetes.io/config.seen": "2026-01-02T03:04:05.006000000Z",
        "kubernetes.io/config.source": "file",
      },
    });
    expect(pod).toMatchObject({ spec: { nodeName: "Node-1" }, status: { phase: "Pending" } });
    expect([isStaticPod(pod), isCriticalPod(pod)]).toEqual([true, true]);
  });

  test("the UID is the same for the same manifest, whatever the order of its fields", () => {
    const { metadata, spec, ...rest } = manifestOf();
    expect(build({ spec, metadata, ...rest }).metadata.uid).toBe(build(manifestOf()).metadata.uid);
  });

  test("what a manifest claims to be does not count", () => {
    const names = ["hash", "seen", "source", "mirror", "other"].map((name) => `kubernetes.io/config.${name}`);
    const annotations = Object.fromEntries([...names, "mine"].map((name) => [name, "api"]));
    const pod = build(manifestOf({}, { annotations }));
    expect([isStaticPod(pod), isMirrorPod(pod)]).toEqual([true, false]);
    expect(pod.metadata.annotations).toEqual({
      mine: "api",
      "kubernetes.io/config.hash": pod.metadata.uid,
      "kubernetes.io/config.seen": "2026-01-02T03:04:05.006000000Z",
      "kubernetes.io/config.source": "file",
    });
  });

  const others: [what: string, pod: () => Pod][] = [
    ["content", () => build(manifestOf({ hostNetwork: true }))],
    ["place", () => build(manifestOf(), { source: "file", origin: "/m/other.yaml" })],
    ["source", () => build(manifestOf(), { source: "http", origin: "/m/web.yaml" })],
    ["node", () => buildStaticPod(manifestOf(), file, { ...options, nodeName: "node-2" }, 0)],
  ];
  test.each(others)("another %s is another UID", (_what, pod) => {
    expect(pod().metadata.uid).not.toBe(build(manifestOf()).metadata.uid);
  });

  test("a UID and a namespace that are given stay", () => {
    const { metadata } = build(manifestOf({}, { uid: "fixed-1", namespace: "kube-system" }));
    expect(metadata).toMatchObject({ uid: "fixed-1", namespace: "kube-system" });
    expect(metadata.annotations?.["kubernetes.io/config.hash"]).toBe("fixed-1");
  });

  test("nothing that is wrong with the node evicts a pod of a file; one of a URL says so itself", () => {
    const own = { key: "a", operator: "Exists" };
    const always = { operator: "Exists", effect: "NoExecute" };
    expect(build(manifestOf({ tolerations: [own] })).spec.tolerations).toEqual([own, always]);
    expect(build(manifestOf({ tolerations: [own] }), { source: "http", origin: "u" }).spec.tolerations).toEqual([own]);
  });
});

describe("defaults", () => {
  test("are those of the API server", () => {
    const { tolerations: _, nodeName: __, ...spec } = staticPodOf({ volumes: [{ name: "v" }] }).spec;
    expect(spec).toEqual({
      restartPolicy: "Always",
      terminationGracePeriodSeconds: 30,
      dnsPolicy: "ClusterFirst",
      schedulerName: "default-scheduler",
      enableServiceLinks: true,
      securityContext: {},
      volumes: [{ name: "v", emptyDir: {} }],
      containers: [
        {
          name: "app",
          image: "busybox",
          imagePullPolicy: "Always",
          terminationMessagePath: "/dev/termination-log",
          terminationMessagePolicy: "File",
          resources: {},
        },
      ],
    });
  });

  const containerCases: [what: string, given: object, want: object][] = [
    ["a tag", { image: "r:5000/busybox:1.36" }, { imagePullPolicy: "IfNotPresent" }],
    ["a registry's port is no tag", { image: "r:5000/busybox" }, { imagePullPolicy: "Always" }],
    ["the tag latest", { image: "busybox:latest" }, { imagePullPolicy: "Always" }],
    ["a digest", { image: "busybox@sha256:00" }, { imagePullPolicy: "IfNotPresent" }],
    ["a policy", { imagePullPolicy: "Never" }, { imagePullPolicy: "Never" }],
    [
      "limits are requests",
      { resources: { limits: { cpu: "1", memory: "1Gi" }, requests: { cpu: "500m" } } },
      { resources: { requests: { cpu: "500m", memory: "1Gi" } } },
    ],
    [
      "how resources change while it runs",
      { resources: { limits: { memory: "1Gi" }, requests: { cpu: "1" } } },
      {
        resizePolicy: [
          { resourceName: "cpu", restartPolicy: "NotRequired" },
          { resourceName: "memory", restartPolicy: "NotRequired" },
        ],
      },
    ],
    [
      "how one of them does",
      {
        resources: { requests: { cpu: "1", memory: "1Gi" } },
        resizePolicy: [{ resourceName: "memory", restartPolicy: "RestartContainer" }],
      },
      {
        resizePolicy: [
          { resourceName: "memory", restartPolicy: "RestartContainer" },
          { resourceName: "cpu", restartPolicy: "NotRequired" },
        ],
      },
    ],
    ["ports", { ports: [{ containerPort: 80 }] }, { ports: [{ containerPort: 80, protocol: "TCP" }] }],
    [
      "probes",
      { livenessProbe: { httpGet: { port: 80 } } },
      {
        livenessProbe: {
          httpGet: { port: 80, path: "/", scheme: "HTTP" },
          timeoutSeconds: 1,
          periodSeconds: 10,
          successThreshold: 1,
          failureThreshold: 3,
        },
      },
    ],
    ["grpc", { readinessProbe: { grpc: { port: 1 } } }, { readinessProbe: { grpc: { port: 1, service: "" } } }],
    [
      "hooks",
      { lifecycle: { preStop: { httpGet: { port: 1 } } } },
      { lifecycle: { preStop: { httpGet: { path: "/", scheme: "HTTP" } } } },
    ],
    [
      "field references",
      { env: [{ name: "A", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } }] },
      { env: [{ name: "A", valueFrom: { fieldRef: { apiVersion: "v1", fieldPath: "metadata.name" } } }] },
    ],
  ];
  test.each(containerCases)("of a container: %s", (_what, given, want) => {
    const { containers } = staticPodOf({ containers: [{ name: "app", image: "busybox", ...given }] }).spec;
    expect(containers).toMatchObject([want]);
  });

  test("on the host's network, ports are the host's", () => {
    const containers = [
      { name: "app", image: "busybox", ports: [{ containerPort: 80 }, { containerPort: 81, hostPort: 81 }] },
    ];
    const ports = staticPodOf({ hostNetwork: true, containers }).spec.containers[0]?.ports;
    expect(ports?.map(({ hostPort }) => hostPort)).toEqual([80, 81]);
    expect(
      staticPodOf({ containers: [{ ...containers[0], ports: [{ containerPort: 80 }] }] }).spec.containers[0]?.ports,
    ).toEqual([{ containerPort: 80, protocol: "TCP" }]);
  });

  test("of volumes: modes, types, field references", () => {
    const items = [{ path: "name", fieldRef: { fieldPath: "metadata.name" } }];
    const { volumes } = staticPodOf({
      volumes: [
        { name: "a", hostPath: { path: "/a" } },
        { name: "b", downwardAPI: { items } },
        { name: "c", projected: { sources: [{ downwardAPI: { items } }] } },
      ],
    }).spec;
    const filled = [{ path: "name", fieldRef: { apiVersion: "v1", fieldPath: "metadata.name" } }];
    expect(volumes).toEqual([
      { name: "a", hostPath: { path: "/a", type: "" } },
      { name: "b", downwardAPI: { defaultMode: 0o644, items: filled } },
      { name: "c", projected: { defaultMode: 0o644, sources: [{ downwardAPI: { items: filled } }] } },
    ]);
  });
});

const container = { name: "app", image: "busybox" };

describe("references to objects of the API server are refused", () => {
  const cases: [field: string, spec: object][] = [
    ["spec.serviceAccountName", { serviceAccountName: "default" }],
    ["spec.serviceAccountName", { serviceAccount: "default" }],
    ["spec.imagePullSecrets", { imagePullSecrets: [{ name: "a" }] }],
    ["spec.resourceClaims", { resourceClaims: [{ name: "gpu" }] }],
    [
      "spec.containers[0].envFrom[0].configMapRef",
      { containers: [{ ...container, envFrom: [{ configMapRef: { name: "a" } }] }] },
    ],
    [
      "spec.containers[0].envFrom[0].secretRef",
      { containers: [{ ...container, envFrom: [{ secretRef: { name: "a" } }] }] },
    ],
    [
      "spec.initContainers[0].env[0].valueFrom.secretKeyRef",
      {
        initContainers: [
          { name: "i", image: "b", env: [{ name: "A", valueFrom: { secretKeyRef: { name: "a", key: "k" } } }] },
        ],
      },
    ],
    [
      "spec.containers[0].env[0].valueFrom.configMapKeyRef",
      { containers: [{ ...container, env: [{ name: "A", valueFrom: { configMapKeyRef: { name: "a", key: "k" } } }] }] },
    ],
    ["spec.volumes[0].configMap", { volumes: [{ name: "v", configMap: { name: "a" } }] }],
    ["spec.volumes[0].secret", { volumes: [{ name: "v", secret: { secretName: "a" } }] }],
    ["spec.volumes[0].persistentVolumeClaim", { volumes: [{ name: "v", persistentVolumeClaim: { claimName: "a" } }] }],
    ["spec.volumes[0].ephemeral", { volumes: [{ name: "v", ephemeral: {} }] }],
    ["spec.volumes[0].csi", { volumes: [{ name: "v", csi: { driver: "d" } }] }],
    ["spec.volumes[0].rbd.secretRef", { volumes: [{ name: "v", rbd: { secretRef: { name: "a" } } }] }],
    [
      "spec.volumes[0].projected.sources[1].serviceAccountToken",
      {
        volumes: [{ name: "v", projected: { sources: [{ downwardAPI: {} }, { serviceAccountToken: { path: "t" } }] } }],
      },
    ],
  ];
  test.each(cases)("%s", (field, spec) => {
    expect(() => staticPodOf(spec)).toThrow(
      `${field}: must not be set, a static pod cannot use objects of the API server`,
    );
  });

  test("but not with PreventStaticPodAPIReferences off", () => {
    const manifest = manifestOf({ serviceAccountName: "default" });
    const pod = buildStaticPod(manifest, file, { ...options, refusesReferences: false }, 0);
    expect(pod.spec.serviceAccountName).toBe("default");
    const older = buildStaticPod(
      manifestOf({ serviceAccount: "a" }),
      file,
      { ...options, refusesReferences: false },
      0,
    );
    expect(older.spec.serviceAccountName).toBe("a");
  });

  const allowed: object[] = [
    { emptyDir: {} },
    { hostPath: { path: "/x" } },
    { downwardAPI: { items: [] } },
    { projected: { sources: [{ downwardAPI: { items: [] } }] } },
    { image: { reference: "busybox" } },
    { nfs: { server: "s", path: "/" } },
  ];
  test.each(allowed)("%o is none", (source) => {
    expect(staticPodOf({ volumes: [{ name: "v", ...source }] }).spec.volumes).toHaveLength(1);
  });
});

const mounting = (mount: object) => ({
  volumes: [{ name: "v" }],
  containers: [{ ...container, volumeMounts: [{ name: "v", mountPath: "/v", ...mount }] }],
});
const subPathCases: [message: string, spec: object][] = [
  ['spec.containers[0].volumeMounts[0].subPath: must not hold ".."', mounting({ subPath: "a/../../b" })],
  ["spec.containers[0].volumeMounts[0].subPath: must be relative to its volume", mounting({ subPath: "/a" })],
  ['spec.containers[0].volumeMounts[0].subPathExpr: must not hold ".."', mounting({ subPathExpr: "../$(A)" })],
  [
    "spec.containers[0].volumeMounts[0].subPathExpr: must not be set beside subPath",
    mounting({ subPath: "a", subPathExpr: "b" }),
  ],
];

describe("what the API server would not take is refused, by field", () => {
  const cases: [message: string | RegExp, spec: object, metadata?: object][] = [
    ['metadata.name: must be a DNS subdomain, together with the node\'s name, not "We_b-node-1"', {}, { name: "We_b" }],
    [/^metadata\.name: /, {}, { name: "a".repeat(250) }],
    ['metadata.namespace: must be a DNS label, not "../etc"', {}, { namespace: "../etc" }],
    ['metadata.uid: must be up to 63 letters, digits and "-", not "../../x"', {}, { uid: "../../x" }],
    [
      'metadata.labels: must have keys such as "app" or "example.com/app", not "a b"',
      {},
      { labels: { app: "web", "a b": "c" } },
    ],
    [/^metadata\.labels: .*not "Example\.com\/a"$/, {}, { labels: { "Example.com/a": "" } }],
    [/^metadata\.labels: .*not "\/a"$/, {}, { labels: { "/a": "" } }],
    [/^metadata\.labels: .*not "a\/b\/c"$/, {}, { labels: { "a/b/c": "" } }],
    [/^metadata\.labels: /, {}, { labels: { ["a".repeat(64)]: "" } }],
    [/^metadata\.labels\.app: must be up to 63 letters/, {}, { labels: { app: "not a value" } }],
    [/^metadata\.labels\.app: must be up to 63 letters/, {}, { labels: { app: "a".repeat(64) } }],
    [/^metadata\.annotations: must have keys such as .* not "a b"$/, {}, { annotations: { "a b": "c" } }],
    ["metadata.annotations: must not be more than 256 KiB", {}, { annotations: { a: "x".repeat(256 << 10) } }],
    ["spec.containers: must have at least one container", { containers: [] }],
    ['spec.containers[0].name: must be a DNS label, not "a/b"', { containers: [{ name: "a/b", image: "x" }] }],
    ['spec.containers[0].image: must be the name of an image, not ""', { containers: [{ name: "a" }] }],
    ['spec.containers: must not have "app" twice', { containers: [container, container] }],
    ['spec.containers: must not have "app" twice', { initContainers: [container] }],
    ['spec.restartPolicy: must be Always, OnFailure, Never, not "Sometimes"', { restartPolicy: "Sometimes" }],
    [/^spec\.dnsPolicy: must be /, { dnsPolicy: "cluster" }],
    ["spec.dnsConfig.nameservers: must name a server when dnsPolicy is None", { dnsPolicy: "None" }],
    ["spec.terminationGracePeriodSeconds: must be 0 or more", { terminationGracePeriodSeconds: -1 }],
    ["spec.activeDeadlineSeconds: must be 1 or more", { activeDeadlineSeconds: 0 }],
    ["spec.ephemeralContainers: must be empty in a static pod", { ephemeralContainers: [container] }],
    ['spec.volumes: must not have "v" twice', { volumes: [{ name: "v" }, { name: "v" }] }],
    [
      "spec.volumes[0]: must have one source, not emptyDir and hostPath",
      { volumes: [{ name: "v", emptyDir: {}, hostPath: { path: "/" } }] },
    ],
    ['spec.volumes[0].hostPath.path: must not hold ".."', { volumes: [{ name: "v", hostPath: { path: "/a/../b" } }] }],
    [
      'spec.containers[0].volumeMounts[0].name: must be one of the pod\'s volumes, not "v"',
      { containers: [{ ...container, volumeMounts: [{ name: "v", mountPath: "/v" }] }] },
    ],
    [
      'spec.containers[0].volumeMounts: must not have "/v" twice',
      {
        volumes: [{ name: "v" }],
        containers: [
          {
            ...container,
            volumeMounts: [
              { name: "v", mountPath: "/v" },
              { name: "v", mountPath: "/v" },
            ],
          },
        ],
      },
    ],
    ...subPathCases,
    [
      "spec.containers[0].livenessProbe.terminationGracePeriodSeconds: must be 1 or more",
      {
        containers: [{ ...container, livenessProbe: { exec: { command: ["a"] }, terminationGracePeriodSeconds: -1 } }],
      },
    ],
    [
      "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: must not be set for readiness probes",
      {
        containers: [{ ...container, readinessProbe: { exec: { command: ["a"] }, terminationGracePeriodSeconds: 1 } }],
      },
    ],
    [
      "spec.containers[0].ports[0].containerPort: must be a port from 1 to 65535, not 0",
      { containers: [{ ...container, ports: [{ containerPort: 0 }] }] },
    ],
    [
      "spec.containers[0].livenessProbe: must say one of exec, httpGet, tcpSocket, grpc, sleep",
      { containers: [{ ...container, livenessProbe: {} }] },
    ],
    [
      "spec.containers[0].livenessProbe.successThreshold: must be 1 for liveness and startup probes",
      { containers: [{ ...container, livenessProbe: { exec: { command: ["a"] }, successThreshold: 2 } }] },
    ],
    [
      "spec.containers[0].lifecycle.preStop.port: must be a port or a port's name",
      { containers: [{ ...container, lifecycle: { preStop: { httpGet: { port: 0 } } } }] },
    ],
    [
      'spec.containers[0].resources.limits.cpu: must be a quantity, not "lots"',
      { containers: [{ ...container, resources: { limits: { cpu: "lots" } } }] },
    ],
    [
      "spec.containers[0].resources.requests.cpu: must not be more than its limit 1",
      { containers: [{ ...container, resources: { limits: { cpu: "1" }, requests: { cpu: "2" } } }] },
    ],
  ];
  test.each(cases)("%s", (message, spec, metadata = {}) => {
    expect(() => staticPodOf(spec, metadata)).toThrow(message);
  });

  test("labels, annotations and paths that it takes are taken", () => {
    const labels = { app: "", "example.com/App_1.x": "a_B-c.9", x: "y" };
    const annotations = { "Example.com/Any": "any text, \n even this" };
    const pod = staticPodOf(mounting({ subPath: "a/..b/c" }), { labels, annotations });
    expect(pod.metadata).toMatchObject({ labels, annotations });
  });
});
