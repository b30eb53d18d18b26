import { describe, expect, test } from "vitest";
import {
  containerLabels,
  markedAs,
  readContainer,
  readSandbox,
  sandboxLabels,
} from "../../../../agent/runtime/docker/labels.ts";
import { containerName, sandboxName, withRandomSuffix } from "../../../../agent/runtime/docker/names.ts";
import type { ContainerConfig, PodSandboxConfig } from "../../../../agent/runtime/port.ts";

const sandbox = {
  name: "web",
  namespace: "shop",
  uid: "u-1",
  attempt: 2,
  logDirectory: "/var/log/pods/shop_web_u-1",
  labels: { app: "web", "io.kubernetes.pod.uid": "u-1" },
  annotations: { note: "a\nb", "example.com/x": "" },
  portMappings: [{ protocol: "TCP", containerPort: 80, hostPort: 8080, hostIP: "" }],
} as unknown as PodSandboxConfig;

const container = {
  name: "app",
  attempt: 3,
  userSpecifiedImage: "registry/app:1",
  imageRef: "sha256:abc",
  logPath: "app/3.log",
  labels: { "io.kubernetes.container.name": "app" },
  annotations: { hash: "1" },
} as unknown as ContainerConfig;

describe("names", () => {
  test("are the field's", () => {
    expect(sandboxName(sandbox)).toBe("k8s_POD_web_shop_u-1_2");
    expect(containerName(container, sandbox)).toBe("k8s_app_web_shop_u-1_3");
  });

  test("a suffix makes another name", () => {
    expect(withRandomSuffix("a", () => 0)).toBe("a_00000000");
    expect(withRandomSuffix("a", () => 0.999999)).toMatch(/^a_[0-9a-f]{8}$/);
  });
});

describe("labels", () => {
  test("a sandbox is read back as it was written", () => {
    const labels = sandboxLabels(sandbox, "kata", "node-1");
    expect(markedAs(labels)).toBe("sandbox");
    expect(readSandbox(labels)).toEqual({
      podUID: "u-1",
      podName: "web",
      podNamespace: "shop",
      attempt: 2,
      labels: sandbox.labels,
      annotations: sandbox.annotations,
      runtimeHandler: "kata",
      portMappings: sandbox.portMappings,
    });
  });

  test("a container is read back as it was written, without what its image adds", () => {
    const labels = {
      maintainer: "someone",
      "annotation.hash2": "from the image",
      ...containerLabels("s-1", container, sandbox, "node-1"),
    };
    expect(markedAs(labels)).toBe("container");
    expect(readContainer(labels)).toEqual({
      podUID: "u-1",
      podName: "web",
      podNamespace: "shop",
      name: "app",
      sandboxID: "s-1",
      attempt: 3,
      image: "registry/app:1",
      labels: container.labels,
      annotations: container.annotations,
      logPath: "/var/log/pods/shop_web_u-1/app/3.log",
    });
  });

  test("other people's containers are nobody's", () => {
    expect(markedAs({})).toBeUndefined();
    expect(markedAs({ "io.kubernetes.docker.type": "container" })).toBeUndefined();
    expect(markedAs({ "io.kubernetes.pod.uid": "u-1" })).toBeUndefined();
    expect(
      markedAs({ "io.kubernetes.pod.uid": "u-1", "io.kubernetes.docker.type": "else", "io.nodelet.keys": "[]" }),
    ).toBeUndefined();
  });

  test("what another agent of the same tradition made is not ours", () => {
    const theirs = (labels: Record<string, string>) =>
      Object.fromEntries(Object.entries(labels).filter(([key]) => !key.startsWith("io.nodelet.")));
    expect(markedAs(theirs(sandboxLabels(sandbox, "", "node-1")))).toBeUndefined();
    expect(markedAs(theirs(containerLabels("s-1", container, sandbox, "node-1")))).toBeUndefined();
  });

  test("labels that are broken are read as empty", () => {
    const labels = { ...sandboxLabels(sandbox, "", "node-1"), "io.nodelet.port-mappings": "{", "io.nodelet.keys": "1" };
    expect(readSandbox(labels)).toMatchObject({ portMappings: [], labels: {} });
  });
});
