import { describe, expect, test } from "vitest";
import { discover } from "../../support/apiserver/discovery.ts";
import { openApi } from "../../support/apiserver/openapi.ts";
import { decodeKubernetes, protobufField } from "../../support/apiserver/protobuf.ts";
import { requestInfo } from "../../support/apiserver/request-info.ts";

describe("protobuf bodies", () => {
  const wrap = (kind: string, raw: Buffer) =>
    Buffer.concat([
      Buffer.from("k8s\0"),
      protobufField(1, protobufField(1, "v1"), protobufField(2, kind)),
      protobufField(2, raw),
    ]);
  const entry = (key: string, value: string) => [protobufField(1, key), protobufField(2, value)];

  test("of a ConfigMap and a Secret", () => {
    const metadata = protobufField(
      1,
      protobufField(1, "n"),
      protobufField(2, ""),
      protobufField(11, ...entry("l", "1")),
    );
    const data = [protobufField(2, ...entry("a", "b")), protobufField(2, ...entry("c", "d"))];
    const body = Buffer.concat([metadata, ...data]);
    expect(decodeKubernetes(wrap("ConfigMap", body))).toEqual({
      apiVersion: "v1",
      kind: "ConfigMap",
      metadata: { name: "n", labels: { l: "1" } },
      data: { a: "b", c: "d" },
    });
    expect(decodeKubernetes(wrap("Secret", body))?.["data"]).toEqual({ a: "Yg==", c: "ZA==" });
  });

  test("of unknown kinds are not decoded, damaged ones are refused", () => {
    expect(decodeKubernetes(wrap("Pod", Buffer.alloc(0)))).toBeUndefined();
    expect(() => decodeKubernetes(Buffer.from("{}"))).toThrow("not a Kubernetes protobuf message");
    expect(() => decodeKubernetes(wrap("ConfigMap", Buffer.of(0x0a, 0x7f)))).toThrow("truncated");
  });
});

describe("request lines", () => {
  const cases: { method?: string; path: string; want: object }[] = [
    { path: "/api/v1/pods", want: { verb: "list", plural: "pods", namespace: "" } },
    { path: "/api/v1/pods?watch=true", want: { verb: "watch" } },
    { path: "/api/v1/namespaces/ns/pods/p", want: { verb: "get", namespace: "ns", name: "p" } },
    { path: "/api/v1/namespaces/ns", want: { verb: "get", plural: "namespaces", name: "ns", namespace: "" } },
    { path: "/api/v1/namespaces/ns/status", want: { plural: "namespaces", subresource: "status" } },
    {
      method: "DELETE",
      path: "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices",
      want: { verb: "deletecollection", group: "discovery.k8s.io" },
    },
    { method: "POST", path: "/api/v1/namespaces/ns/pods/p/exec", want: { verb: "create", subresource: "exec" } },
    { path: "/api/v1/nodes/n/proxy/a/b", want: { plural: "nodes", subresource: "proxy", rest: "a/b" } },
    { path: "/healthz", want: { verb: "get", plural: "" } },
    { path: "/apis/apps/v1", want: { plural: "" } },
  ];
  for (const { method = "GET", path, want } of cases) {
    test(`${method} ${path}`, () => expect(requestInfo(method, new URL(path, "https://x"))).toMatchObject(want));
  }
});

test("discovery: groups name versions, versions name resources", () => {
  expect(discover("/apis/", "")).toMatchObject({
    kind: "APIGroupList",
    groups: expect.arrayContaining([expect.objectContaining({ name: "storage.k8s.io" })]),
  });
  expect(discover("/apis/coordination.k8s.io/v1", "")).toMatchObject({
    resources: [{ name: "leases", kind: "Lease", namespaced: true }],
  });
  expect(discover("/apis/apps/v1", "")).toBeUndefined();
});

test("OpenAPI: JSON and binary, with PATCH for every kind", () => {
  expect(openApi("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")?.body).toBeInstanceOf(
    Buffer,
  );
  expect(openApi("/openapi/v2", "application/json")?.body).toContain('"swagger":"2.0"');
  expect(openApi("/openapi/v3", "")?.body).toContain('"/openapi/v3/api/v1?hash=0"');
  expect(openApi("/openapi/v3/api/v1", "")?.body).toContain(
    '"x-kubernetes-group-version-kind":{"group":"","version":"v1","kind":"Pod"}',
  );
  expect(openApi("/openapi/v3/apis/none/v1", "")).toBeUndefined();
});
