import { expect, test } from "vitest";
import { isOneOf, stepsNeeding } from "../../../agent/pods/dependents.ts";
import { podOf } from "./support.ts";

const pod = podOf({
  imagePullSecrets: [{ name: "registry" }],
  volumes: [
    { name: "plain", configMap: { name: "files" } },
    { name: "inline", csi: { driver: "csi.example", nodePublishSecretRef: { name: "login" } } },
    { name: "mixed", projected: { sources: [{ secret: { name: "both" } }] } },
  ],
  initContainers: [{ name: "init", envFrom: [{ configMapRef: { name: "env" } }] }],
  containers: [
    { name: "app", env: [{ name: "A", valueFrom: { secretKeyRef: { name: "both", key: "a" } } }] },
    {
      name: "log",
      env: [{ name: "B", value: "b" }],
      volumeMounts: [{ name: "plain", mountPath: "/log.conf", subPath: "log.conf" }],
    },
  ],
});

test.each([
  ["ConfigMap", "files", ["volumes", "start/log"]],
  ["ConfigMap", "env", ["start/init"]],
  ["Secret", "both", ["volumes", "start/app"]],
  ["Secret", "registry", ["image/"]],
  ["Secret", "login", ["volumes"]],
  ["Secret", "files", []],
  ["ConfigMap", "unheard", []],
] as const)("a change of %s %s concerns %j", (kind, name, want) =>
  expect(stepsNeeding(pod, { kind, name })).toEqual(want),
);

test.each([
  ["volumes", ["volumes"], true],
  ["start/app", ["volumes", "start/app"], true],
  ["start/app2", ["start/app"], false],
  ["image/app", ["image/"], true],
  ["sandbox", ["image/", "volumes"], false],
])("whether %s is one of %j: %s", (key, steps, want) => expect(isOneOf(key, steps)).toBe(want));
