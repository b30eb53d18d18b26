import { expect, test } from "vitest";
import { createNodeView } from "../../../agent/node/view.ts";
import type { Node } from "../../../agent/kube/types.ts";
import { FakeApi } from "./fake-api.ts";
import { FakeHealth } from "./fake-health.ts";
import { healthy } from "./status-inputs.ts";

const nowMs = Date.UTC(2026, 0, 1);
const nodeWith = (address: string, heartbeat = ""): Node => ({
  metadata: { name: "n1" },
  status: {
    addresses: [{ type: "InternalIP", address }],
    allocatable: { cpu: "4" },
    conditions: [{ type: "Ready", status: "True", lastHeartbeatTime: heartbeat }],
  },
});

test("pods see the node as it is, and hear of what matters to them", () => {
  const api = new FakeApi();
  api.set("Node", nodeWith("10.0.0.1"));
  const able = { name: "able", recursiveReadOnlyMounts: false, userNamespaces: true };
  const state = healthy(nowMs);
  const health = new FakeHealth({ ...state, handlers: [...state.handlers, able] });
  const view = createNodeView({
    nodeName: "n1",
    agent: { node: () => api.object<Node>("Node", "n1") ?? nodeWith("") },
    health,
    nodeStore: api.nodeStore(),
    now: () => nowMs,
  });
  expect(view.hostIPs()).toEqual(["10.0.0.1"]);
  expect(view.allocatable()).toEqual({ cpu: "4" });
  expect(view.runtimeName).toBe("containerd");
  expect(view.networkProblem()).toBe("");
  expect(view.hasRecursiveReadOnly("")).toBe(true);
  expect(view.hasRecursiveReadOnly("kata")).toBe(false);
  expect([view.hasUserNamespaces(""), view.hasUserNamespaces("able")]).toEqual([false, true]);

  let heard = 0;
  const stop = view.subscribe(() => {
    heard += 1;
  });
  api.set("Node", nodeWith("10.0.0.1", "later"));
  expect(heard).toBe(0);
  api.set("Node", nodeWith("10.0.0.2"));
  expect(heard).toBe(1);
  health.set({ ...healthy(nowMs), networkReady: { status: false, reason: "R", message: "no CNI" } });
  expect(heard).toBe(2);
  expect(view.networkProblem()).toContain("reason:R message:no CNI");
  stop();
  api.set("Node", nodeWith("10.0.0.3"));
  expect(heard).toBe(2);
});
