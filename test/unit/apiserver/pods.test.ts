import { describe, expect, test } from "vitest";
import type { Pod } from "../../../agent/kube/types.ts";
import { objectAt, objectsAt, stringAt } from "../../support/apiserver/json.ts";
import { simplePod } from "./client.ts";
import { useApiServer } from "./use-api-server.ts";

const on = useApiServer();
const { path } = on;

describe("pods", () => {
  test("get the defaults of the API server", async () => {
    const { code, body } = await on.client.post(
      path("pods"),
      simplePod("web", {
        spec: {
          containers: [
            {
              name: "c",
              image: "busybox",
              ports: [{ containerPort: 80 }],
              resources: { limits: { cpu: "1", memory: "1Gi" } },
              readinessProbe: { httpGet: { port: 80 } },
              env: [{ name: "N", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } }],
            },
          ],
          volumes: [{ name: "cm", configMap: { name: "x" } }],
        },
      }),
    );
    expect(code).toBe(201);
    const pod = body as unknown as Pod;
    expect(pod.status).toEqual({ phase: "Pending", qosClass: "Guaranteed" });
    expect(pod.metadata.generation).toBe(1);
    expect(pod.spec).toMatchObject({
      restartPolicy: "Always",
      dnsPolicy: "ClusterFirst",
      terminationGracePeriodSeconds: 30,
      enableServiceLinks: true,
      schedulerName: "default-scheduler",
      securityContext: {},
      serviceAccountName: "default",
      priority: 0,
      preemptionPolicy: "PreemptLowerPriority",
    });
    expect(pod.spec.tolerations?.map((t) => [t.key, t.tolerationSeconds])).toEqual([
      ["node.kubernetes.io/not-ready", 300],
      ["node.kubernetes.io/unreachable", 300],
    ]);
    const [container] = pod.spec.containers;
    expect(container).toMatchObject({
      imagePullPolicy: "Always",
      terminationMessagePath: "/dev/termination-log",
      terminationMessagePolicy: "File",
      ports: [{ containerPort: 80, protocol: "TCP" }],
      resources: { requests: { cpu: "1", memory: "1Gi" } },
      readinessProbe: {
        httpGet: { path: "/", scheme: "HTTP", port: 80 },
        timeoutSeconds: 1,
        periodSeconds: 10,
        successThreshold: 1,
        failureThreshold: 3,
      },
      env: [{ valueFrom: { fieldRef: { apiVersion: "v1" } } }],
    });
    expect(pod.spec.volumes?.[0]).toEqual({ name: "cm", configMap: { name: "x", defaultMode: 420 } });
    const token = pod.spec.volumes?.[1];
    expect(token?.name).toMatch(/^kube-api-access-[a-z0-9]{5}$/);
    expect(token?.projected?.sources?.[0]).toEqual({ serviceAccountToken: { expirationSeconds: 3607, path: "token" } });
    expect(container?.volumeMounts).toEqual([
      { name: token?.name, readOnly: true, mountPath: "/var/run/secrets/kubernetes.io/serviceaccount" },
    ]);
  });

  const pullCases = [
    ["a", "Always"],
    ["a:latest", "Always"],
    ["a:1", "IfNotPresent"],
    ["r:5000/a", "Always"],
    ["a@sha256:0", "IfNotPresent"],
  ];
  test.each(pullCases)("image %s is pulled %s", async (image, want) => {
    const { body } = await on.client.post(
      path("pods"),
      simplePod("p", { spec: { containers: [{ name: "c", image }] } }),
    );
    expect((body as unknown as Pod).spec.containers[0]?.imagePullPolicy).toBe(want);
  });

  const invalidCases: { name: string; pod: unknown; code: number; message: string }[] = [
    {
      name: "a bad name",
      pod: simplePod("Bad_Name"),
      code: 422,
      message: 'Pod "Bad_Name" is invalid: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain',
    },
    {
      name: "no containers",
      pod: simplePod("p", { spec: { containers: [] } }),
      code: 422,
      message: 'Pod "p" is invalid: spec.containers: Required value',
    },
    {
      name: "no image",
      pod: simplePod("p", { spec: { containers: [{ name: "c" }] } }),
      code: 422,
      message: "spec.containers[0].image: Required value",
    },
    {
      name: "no container name",
      pod: simplePod("p", { spec: { containers: [{ image: "i" }] } }),
      code: 422,
      message: "spec.containers[0].name: Required value",
    },
    {
      name: "the same container twice",
      pod: simplePod("p", {
        spec: {
          containers: [
            { name: "c", image: "i" },
            { name: "c", image: "i" },
          ],
        },
      }),
      code: 422,
      message: 'spec.containers[1].name: Duplicate value: "c"',
    },
    {
      name: "an impossible port",
      pod: simplePod("p", { spec: { containers: [{ name: "c", image: "i", ports: [{ containerPort: 70000 }] }] } }),
      code: 422,
      message:
        "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    },
    {
      name: "a mount without volume",
      pod: simplePod("p", {
        spec: { containers: [{ name: "c", image: "i", volumeMounts: [{ name: "v", mountPath: "/v" }] }] },
      }),
      code: 422,
      message: 'spec.containers[0].volumeMounts[0].name: Not found: "v"',
    },
    {
      name: "an unknown restart policy",
      pod: simplePod("p", { spec: { restartPolicy: "Maybe" } }),
      code: 422,
      message: 'spec.restartPolicy: Unsupported value: "Maybe"',
    },
    {
      name: "a wrong type",
      pod: simplePod("p", { spec: { containers: "none" } }),
      code: 400,
      message: "cannot be handled as a Pod",
    },
    {
      name: "a quantity that is none",
      pod: simplePod("p", {
        spec: { containers: [{ name: "c", image: "i", resources: { limits: { cpu: "lots" } } }] },
      }),
      code: 400,
      message: "quantities must match",
    },
    {
      name: "an unknown service account",
      pod: simplePod("p", { spec: { serviceAccountName: "nobody" } }),
      code: 403,
      message: 'serviceaccount "nobody" not found',
    },
    {
      name: "an unknown priority class",
      pod: simplePod("p", { spec: { priorityClassName: "vip" } }),
      code: 403,
      message: "no PriorityClass with name vip was found",
    },
  ];
  test.each(invalidCases)("with $name are refused", async ({ pod, code, message }) => {
    const answer = await on.client.post(path("pods"), pod);
    expect(answer.code).toBe(code);
    expect(answer.body["message"]).toContain(message);
    expect(answer.body).toMatchObject({ kind: "Status", status: "Failure", code });
  });

  test("errors carry what kubectl prints: reason, details, causes", async () => {
    const missing = await on.client.get(path("pods/none"));
    expect(missing.body).toEqual({
      kind: "Status",
      apiVersion: "v1",
      metadata: {},
      status: "Failure",
      message: 'pods "none" not found',
      reason: "NotFound",
      details: { name: "none", kind: "pods" },
      code: 404,
    });
    await on.client.post(path("pods"), simplePod("p"));
    const twice = await on.client.post(path("pods"), simplePod("p"));
    expect([twice.code, twice.body["reason"]]).toEqual([409, "AlreadyExists"]);
    const lost = await on.client.post("/api/v1/namespaces/nowhere/pods", simplePod("p"));
    expect([lost.code, lost.body["message"]]).toEqual([404, 'namespaces "nowhere" not found']);
  });

  test("generateName makes different names", async () => {
    const spec = simplePod("")["spec"];
    const first = await on.client.post(path("pods"), { metadata: { generateName: "x-" }, spec });
    const second = await on.client.post(path("pods"), { metadata: { generateName: "x-" }, spec });
    expect(stringAt(first.body, "metadata", "name")).toMatch(/^x-.{5}$/);
    expect(stringAt(second.body, "metadata", "name")).not.toBe(stringAt(first.body, "metadata", "name"));
  });

  test("status and spec are written apart", async () => {
    await on.client.post(path("pods"), simplePod("p"));
    const main = await on.client.patch(path("pods/p"), "merge-patch+json", {
      status: { phase: "Failed" },
      metadata: { labels: { a: "b" } },
    });
    expect(stringAt(main.body, "status", "phase")).toBe("Pending");
    const sub = await on.client.patch(path("pods/p/status"), "merge-patch+json", {
      status: { phase: "Running" },
      spec: { containers: [] },
    });
    expect(stringAt(sub.body, "status", "phase")).toBe("Running");
    expect(objectsAt(sub.body, "spec", "containers")).toHaveLength(1);
    expect(objectAt(sub.body, "metadata", "labels")).toEqual({ a: "b" });
  });

  test("only some of the spec may change, and a change counts the generation up", async () => {
    await on.client.post(path("pods"), simplePod("p"));
    const image = await on.client.patch(path("pods/p"), "strategic-merge-patch+json", {
      spec: { containers: [{ name: "c", image: "busybox:2" }] },
    });
    expect([image.code, objectAt(image.body, "metadata")["generation"]]).toEqual([200, 2]);
    const command = await on.client.patch(path("pods/p"), "strategic-merge-patch+json", {
      spec: { containers: [{ name: "c", command: ["x"] }] },
    });
    expect(command.code).toBe(422);
    expect(command.body["message"]).toContain("spec: Forbidden: pod updates may not change fields other than");
  });

  test("a patch with the UID of another pod is a conflict", async () => {
    await on.client.post(path("pods"), simplePod("p"));
    const answer = await on.client.patch(path("pods/p/status"), "strategic-merge-patch+json", {
      metadata: { uid: "other" },
      status: {},
    });
    expect(answer.code).toBe(409);
    expect(answer.body["message"]).toContain("Precondition failed: UID in precondition: other, UID in object meta: ");
  });

  test("a stale resourceVersion is a conflict, a write of nothing is no write", async () => {
    const { body: created } = await on.client.post(path("pods"), simplePod("p"));
    const same = await on.client.call("PUT", path("pods/p"), { body: created });
    expect(stringAt(same.body, "metadata", "resourceVersion")).toBe(stringAt(created, "metadata", "resourceVersion"));
    await on.client.patch(path("pods/p"), "merge-patch+json", { metadata: { labels: { a: "1" } } });
    const stale = await on.client.call("PUT", path("pods/p"), { body: created });
    expect(stale.code).toBe(409);
    expect(stale.body["message"]).toContain(
      "the object has been modified; please apply your changes to the latest version",
    );
  });

  test("dryRun=All answers and changes nothing", async () => {
    const { code } = await on.client.post(`${path("pods")}?dryRun=All`, simplePod("p"));
    expect(code).toBe(201);
    expect((await on.client.get(path("pods/p"))).code).toBe(404);
  });
});

describe("deletion of pods", () => {
  const remove = (name: string, options: unknown = {}) =>
    on.client.call("DELETE", path(`pods/${name}`), { body: options });
  const create = async (name: string, more = {}) =>
    (await on.client.post(path("pods"), simplePod(name, more))).body as unknown as Pod;

  test("an unscheduled pod goes at once", async () => {
    await create("p");
    expect((await remove("p")).code).toBe(200);
    expect((await on.client.get(path("pods/p"))).code).toBe(404);
  });

  test("a pod on a node waits for it, with the grace it asked for", async () => {
    await create("p", { spec: { nodeName: "n" } });
    const { body } = await remove("p");
    expect(objectAt(body, "metadata")).toMatchObject({ deletionGracePeriodSeconds: 30, generation: 2 });
    expect(stringAt(body, "metadata", "deletionTimestamp")).not.toBe("");
    // Longer is not possible, shorter is, zero ends it.
    const longer = await remove("p", { gracePeriodSeconds: 60 });
    expect(objectAt(longer.body, "metadata")["deletionGracePeriodSeconds"]).toBe(30);
    const shorter = await remove("p", { gracePeriodSeconds: 5 });
    expect(objectAt(shorter.body, "metadata")["deletionGracePeriodSeconds"]).toBe(5);
    await remove("p", { gracePeriodSeconds: 0 });
    expect((await on.client.get(path("pods/p"))).code).toBe(404);
  });

  test.each(["Succeeded", "Failed"])("a pod that has %s goes at once", async (phase) => {
    await create("p", { spec: { nodeName: "n" } });
    await on.client.patch(path("pods/p/status"), "merge-patch+json", { status: { phase } });
    await remove("p");
    expect((await on.client.get(path("pods/p"))).code).toBe(404);
  });

  test("a finalizer holds the pod until it is taken away", async () => {
    await create("p", { metadata: { finalizers: ["test/x"] } });
    await remove("p", { gracePeriodSeconds: 0 });
    const held = await on.client.get(path("pods/p"));
    expect(objectAt(held.body, "metadata")["deletionGracePeriodSeconds"]).toBe(0);
    await on.client.patch(path("pods/p"), "merge-patch+json", { metadata: { finalizers: null } });
    expect((await on.client.get(path("pods/p"))).code).toBe(404);
  });

  test("a UID precondition protects the pod that has the name now", async () => {
    const pod = await create("p");
    const wrong = await remove("p", { preconditions: { uid: "other" } });
    expect([wrong.code, wrong.body["reason"]]).toEqual([409, "Conflict"]);
    expect((await remove("p", { preconditions: { uid: pod.metadata.uid } })).code).toBe(200);
  });

  test("an eviction deletes", async () => {
    await create("p", { spec: { nodeName: "n" } });
    const answer = await on.client.post(path("pods/p/eviction"), {
      apiVersion: "policy/v1",
      kind: "Eviction",
      metadata: { name: "p" },
    });
    expect([answer.code, answer.body["status"]]).toEqual([201, "Success"]);
    expect(stringAt((await on.client.get(path("pods/p"))).body, "metadata", "deletionTimestamp")).not.toBe("");
  });

  test("deletecollection deletes what the selector finds", async () => {
    await create("a", { metadata: { labels: { x: "1" } } });
    await create("b");
    await on.client.call("DELETE", `${path("pods")}?labelSelector=x%3D1`);
    const left = await on.client.get(path("pods"));
    expect(objectsAt(left.body, "items").map((o) => stringAt(o, "metadata", "name"))).toEqual(["b"]);
  });
});

describe("subresources of pods", () => {
  test("binding sets the node once", async () => {
    await on.client.post(path("pods"), simplePod("p"));
    const target = { apiVersion: "v1", kind: "Binding", metadata: { name: "p" }, target: { kind: "Node", name: "n1" } };
    expect((await on.client.post(path("pods/p/binding"), target)).code).toBe(201);
    const { body } = await on.client.get(path("pods/p"));
    expect(stringAt(body, "spec", "nodeName")).toBe("n1");
    expect(objectsAt(body, "status", "conditions")[0]).toMatchObject({ type: "PodScheduled", status: "True" });
    expect(objectAt(body, "metadata")["generation"]).toBe(1);
    expect((await on.client.post(path("pods/p/binding"), target)).code).toBe(409);
  });

  test("ephemeralcontainers and resize touch only their part", async () => {
    const containers = [{ name: "c", image: "busybox:1", resources: { requests: { cpu: "1" } } }];
    await on.client.post(path("pods"), simplePod("p", { spec: { containers } }));
    const debug = await on.client.patch(path("pods/p/ephemeralcontainers"), "strategic-merge-patch+json", {
      spec: { ephemeralContainers: [{ name: "d", image: "busybox:1" }], hostname: "h" },
    });
    expect(objectsAt(debug.body, "spec", "ephemeralContainers")[0]).toMatchObject({
      name: "d",
      imagePullPolicy: "IfNotPresent",
    });
    expect(stringAt(debug.body, "spec", "hostname")).toBe("");
    const resized = await on.client.patch(path("pods/p/resize"), "strategic-merge-patch+json", {
      spec: { containers: [{ name: "c", image: "other", resources: { requests: { cpu: "2" } } }] },
    });
    expect(objectsAt(resized.body, "spec", "containers")[0]).toMatchObject({
      image: "busybox:1",
      resources: { requests: { cpu: "2" } },
    });
    expect(objectAt(resized.body, "metadata")["generation"]).toBe(3);
  });

  test.each([
    ["another QoS class", { limits: { cpu: "1", memory: "1Gi" } }, "Pod QOS Class may not change"],
    ["a request taken away", { requests: { cpu: null } }, "resource requests cannot be removed"],
    ["another resource", { requests: { "ephemeral-storage": "1Gi" } }, "only cpu and memory resources are mutable"],
    ["more than the limit", { requests: { memory: "2Gi" }, limits: { memory: "1Gi" } }, "must be less than or equal"],
  ])("resize refuses %s", async (_name, resources, why) => {
    const own = { requests: { cpu: "1", memory: "1Gi" } };
    const containers = [{ name: "c", image: "busybox:1", resources: own }];
    await on.client.post(path("pods"), simplePod("p", { spec: { containers } }));
    const body = { spec: { containers: [{ name: "c", resources }] } };
    const answer = await on.client.patch(path("pods/p/resize"), "strategic-merge-patch+json", body);
    expect(answer.code).toBe(422);
    expect(stringAt(answer.body, "message")).toContain(why);
  });
});
