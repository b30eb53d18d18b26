import { expect, test } from "vitest";
import { clusterRights } from "../../support/apiserver/rights.ts";

const ask = (name: string, verb: string, subresource: string, resource = "nodes") =>
  clusterRights({ user: { name, groups: [] }, verb, group: "", resource, subresource, namespace: "", name: "n1" });

test("service accounts may not ask kubelets for anything but what their name says", () => {
  expect(ask("system:serviceaccount:kube-system:default", "get", "proxy")).toMatch(/no role gives .* get nodes\/proxy/);
  expect(ask("system:serviceaccount:monitoring:may-get-nodes-metrics", "get", "metrics")).toBe(true);
  expect(ask("system:serviceaccount:monitoring:may-get-nodes-metrics", "get", "proxy")).not.toBe(true);
  expect(ask("system:serviceaccount:monitoring:may-get-nodes-metrics", "create", "metrics")).not.toBe(true);
});

test("everybody may do everything else", () => {
  expect(ask("system:serviceaccount:kube-system:default", "list", "", "pods")).toBe(true);
  expect(ask("system:serviceaccount:kube-system:default", "get", "")).toBe(true);
  expect(ask("kubernetes-admin", "create", "proxy")).toBe(true);
});
