import { expect, test } from "vitest";
import type { Container, Pod, RestartPolicy } from "../../../agent/kube/types.ts";
import { containerAnnotations } from "../../../agent/pods/container-annotations.ts";
import { decide } from "../../../agent/pods/decide.ts";
import type { PodLocal } from "../../../agent/pods/local.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import type { ContainerStatus } from "../../../agent/runtime/port.ts";
import { containerOf, localOf, podOf, snapshot } from "./support.ts";

const nowMs = 10_000;

const app = (more: Partial<Container>): Container => ({ name: "app", image: "image:1", ...more });
const podWith = (container: Container, restartPolicy: RestartPolicy = "Always", init: Container[] = []): Pod =>
  podOf({ containers: [container], initContainers: init, restartPolicy, terminationGracePeriodSeconds: 30 });
const runs = (pod: Pod, container: Container): ContainerStatus =>
  containerOf({
    name: container.name,
    id: `${container.name}-0`,
    annotations: containerAnnotations(pod, container, 0),
  });
const failed = (type: "Liveness" | "Startup", name = "app", id = `${name}-0`): PodLocal["verdict"] => {
  return (container, instance, asked) =>
    container === name && instance === id && asked === type ? "failure" : asked === type ? "success" : undefined;
};

const cases: {
  name: string;
  container: Container;
  restartPolicy?: RestartPolicy;
  verdict: PodLocal["verdict"];
  local?: Partial<PodLocal>;
  want: Partial<PodAction>[];
}[] = [
  {
    name: "a failed liveness probe stops the container, with the pod's grace, and another takes its place",
    container: app({ livenessProbe: {} }),
    verdict: failed("Liveness"),
    want: [
      {
        kind: "KillContainer",
        containerID: "app-0",
        graceSeconds: 30,
        why: "Container app failed liveness probe, will be restarted",
        replaces: true,
      },
    ],
  },
  {
    name: "so does a failed startup probe",
    container: app({ startupProbe: {} }),
    verdict: failed("Startup"),
    want: [{ kind: "KillContainer", why: "Container app failed startup probe, will be restarted", replaces: true }],
  },
  {
    name: "the probe's own grace counts instead of the pod's",
    container: app({ livenessProbe: { terminationGracePeriodSeconds: 5 } }),
    verdict: failed("Liveness"),
    want: [{ kind: "KillContainer", graceSeconds: 5 }],
  },
  {
    name: "that of the other probe does not",
    container: app({ startupProbe: { terminationGracePeriodSeconds: 5 }, livenessProbe: {} }),
    verdict: (_container, _id, type) => (type === "Liveness" ? "failure" : "success"),
    want: [{ kind: "KillContainer", graceSeconds: 30 }],
  },
  {
    name: "its preStop hook comes first",
    container: app({ livenessProbe: {}, lifecycle: { preStop: { sleep: { seconds: 1 } } } }),
    verdict: failed("Liveness"),
    want: [{ kind: "PreStop", why: "Container app failed liveness probe, will be restarted", graceSeconds: 30 }],
  },
  {
    name: "a container that never restarts is stopped all the same, and that is said",
    container: app({ livenessProbe: {} }),
    restartPolicy: "Never",
    verdict: failed("Liveness"),
    want: [{ kind: "KillContainer", why: "Container app failed liveness probe" }],
  },
  {
    name: "a verdict on an earlier instance does not count",
    container: app({ livenessProbe: {} }),
    verdict: failed("Liveness", "app", "app-old"),
    want: [],
  },
  {
    name: "nor does a verdict without a probe",
    container: app({}),
    verdict: () => "failure",
    want: [],
  },
  {
    name: "nor does readiness",
    container: app({ readinessProbe: {} }),
    verdict: () => "failure",
    want: [],
  },
  {
    name: "while the pod stops, its own end goes on as it is",
    container: app({ livenessProbe: { terminationGracePeriodSeconds: 5 } }),
    verdict: failed("Liveness"),
    local: { terminating: { sinceMs: nowMs, graceSeconds: 20 } },
    want: [{ kind: "KillContainer", graceSeconds: 20, why: "Stopping container app" }],
  },
];
test.each(cases)("$name", ({ container, restartPolicy, verdict, local = {}, want }) => {
  const pod = podWith(container, restartPolicy);
  const plan = decide(pod, snapshot({ containers: [runs(pod, container)] }), localOf({ verdict, ...local }), nowMs);
  expect(plan.actions).toMatchObject(want);
  expect(plan.actions).toHaveLength(want.length);
});

test("a regular container that always restarts is no sidecar", () => {
  const pod = podWith(app({ restartPolicy: "Always", livenessProbe: {} }), "Never");
  const observed = snapshot({ containers: [runs(pod, app({}))] });
  const plan = decide(pod, observed, localOf({ verdict: failed("Liveness", "app") }), nowMs);
  expect(plan.actions).toMatchObject([{ why: "Container app failed liveness probe, will be restarted" }]);
});

test("a sidecar is told from the others", () => {
  const side: Container = { name: "side", image: "image:1", restartPolicy: "Always", livenessProbe: {} };
  const pod = podWith(app({}), "Never", [side]);
  const containers = [runs(pod, app({})), runs(pod, side)];
  const plan = decide(pod, snapshot({ containers }), localOf({ verdict: failed("Liveness", "side") }), nowMs);
  expect(plan.actions).toMatchObject([
    {
      kind: "KillContainer",
      containerID: "side-0",
      why: "Init container side failed liveness probe, will be restarted",
    },
  ]);
});

test("a sidecar holds back those after it until its startup probe has passed", () => {
  const side: Container = { name: "side", image: "image:1", restartPolicy: "Always", startupProbe: {} };
  const pod = podWith(app({}), "Always", [side]);
  const actions = (verdict: "unknown" | "success") => {
    const observed = snapshot({ containers: [runs(pod, side)] });
    return decide(pod, observed, localOf({ verdict: () => verdict }), nowMs).actions.map(({ kind }) => kind);
  };
  expect(actions("unknown")).toEqual([]);
  expect(actions("success")).toEqual(["EnsureImage"]);
});
