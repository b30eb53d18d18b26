import { expect, test } from "vitest";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { goDuration } from "../../../agent/runtime/images.ts";
import type { PullRecords } from "../../../agent/runtime/images-records.ts";
import { createImageMetrics } from "../../../agent/runtime/metrics.ts";
import { settle } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { info, setUp } from "./images-support.ts";

test("a present image is used as it is", async () => {
  const { images, events, ensure } = setUp();
  images.present.set("app:1", info("sha256:1"));
  expect(await ensure("app:1", { policy: "IfNotPresent" })).toMatchObject({
    imageRef: "sha256:1",
    image: { sizeBytes: 1234 },
  });
  expect(await ensure("app:1", { policy: "Never" })).toMatchObject({ imageRef: "sha256:1" });
  expect(images.pulls).toEqual([]);
  expect(events[0]).toBe('web Normal Pulled: Container image "app:1" already present on machine');
});

test("an absent image is pulled, with the events that people look for", async () => {
  const { images, events, ensure } = setUp();
  expect(await ensure("app:1")).toMatchObject({ imageRef: "sha256:app:1" });
  expect(images.pulls.map(({ image }) => image)).toEqual(["app:1"]);
  expect(events).toEqual([
    'web Normal Pulling: Pulling image "app:1"',
    'web Normal Pulled: Successfully pulled image "app:1" in 0s (0s including waiting). Image size: 1234 bytes.',
  ]);
});

test("Always pulls what is present, and is the default for latest", async () => {
  const { images, ensure } = setUp();
  images.present.set("app:latest", info("sha256:old"));
  await ensure("app");
  await ensure("app:latest");
  images.present.set("app:1", info("sha256:old"));
  await ensure("app:1", { policy: "Always" });
  expect(images.pulls.map(({ image }) => image)).toEqual(["app:latest", "app:latest", "app:1"]);
});

test("people are told the image as the pod names it", async () => {
  const { images, events, ensure, failure } = setUp();
  await ensure("app");
  expect(images.pulls.map(({ image }) => image)).toEqual(["app:latest"]);
  images.pullError = () => new Error("away");
  await failure("other");
  expect((await failure("other")).message).toBe('Back-off pulling image "other": ErrImagePull: away');
  expect(events.join()).not.toContain(":latest");
});

test("Never and absent: ErrImageNeverPull", async () => {
  const { images, events, failure } = setUp();
  const err = await failure("app:1", { policy: "Never" });
  expect(err).toMatchObject({ reason: "ErrImageNeverPull", retryAtMs: undefined });
  expect(events).toEqual([
    'web Warning ErrImageNeverPull: Container image "app:1" is not present with pull policy of Never',
  ]);
  expect(images.pulls).toEqual([]);
});

test("a name that is none: InvalidImageName, and nobody is asked", async () => {
  const { events, failure } = setUp();
  const err = await failure("App:1");
  expect(err.reason).toBe("InvalidImageName");
  expect(err.message).toContain(
    'Failed to apply default image tag "App:1": couldn\'t parse image name "App:1": invalid reference format',
  );
  expect(events[0]).toMatch(/^web Warning InspectFailed: /);
});

test("the runtime cannot say: ImageInspectError", async () => {
  const { images, events, failure } = setUp();
  images.statusError = new Error("boom");
  expect(await failure("app:1")).toMatchObject({
    reason: "ImageInspectError",
    message: 'Failed to inspect image "app:1": boom',
  });
  expect(events).toEqual(['web Warning InspectFailed: Failed to inspect image "app:1": boom']);
});

const runtimeErrors = [
  { error: "not found", reason: "ErrImagePull", message: "not found" },
  {
    error: "RegistryUnavailable: 503",
    reason: "RegistryUnavailable",
    message: "image pull failed for app:1 because the registry is unavailable: 503",
  },
  {
    error: "SignatureValidationFailed: no key",
    reason: "SignatureValidationFailed",
    message: "image pull failed for app:1 because the signature validation failed: no key",
  },
];
for (const { error, reason, message } of runtimeErrors) {
  test(`a pull that fails with "${error}" is ${reason}`, async () => {
    const { images, events, failure } = setUp();
    images.pullError = () => new Error(error);
    expect(await failure("app:1")).toMatchObject({ reason, message });
    expect(events[1]).toBe(`web Warning Failed: Failed to pull image "app:1": ${error}`);
  });
}

test("an image that others' credentials brought is pulled again, and not given with Never", async () => {
  const records: PullRecords = {
    mustPull: async (image) =>
      image === "secret:1" || (image === "broken:1" && (await Promise.reject(new Error("EIO")))),
    recordPull: async (_image, pull) => await pull(),
    recover: async () => {},
    prune: async () => {},
  };
  const { images, ensure, failure } = setUp({ records });
  for (const image of ["secret:1", "broken:1", "open:1"]) images.present.set(image, info("sha256:1"));
  images.pullError = () => new Error("denied");
  expect(await failure("secret:1")).toMatchObject({ reason: "ErrImagePull", message: "denied" });
  const never = await failure("secret:1", { policy: "Never" });
  expect(never.reason).toBe("ErrImageNeverPull");
  expect(never.message).toContain("does not have the proper credentials");
  expect(await failure("broken:1")).toMatchObject({ reason: "ErrImagePull" });
  expect(await ensure("open:1")).toMatchObject({ imageRef: "sha256:1" });
});

for (const [ms, want] of [
  [0.4, "0s"],
  [12.9, "12ms"],
  [1_000, "1s"],
  [1_234, "1.234s"],
  [62_500, "1m2.5s"],
  [3_603_000, "1h0m3s"],
] as const) {
  test(`${ms} ms reads ${want}`, () => expect(goDuration(ms)).toBe(want));
}

test("every wish for an image is counted, by what was there and what it took", async () => {
  const registry = new MetricsRegistry();
  const records: PullRecords = {
    mustPull: async (_image, imageRef) => imageRef === "sha256:secret",
    recordPull: async (_image, pull) => await pull(),
    recover: async () => {},
    prune: async () => {},
  };
  const { images, clock, ensure, failure } = setUp({ metrics: createImageMetrics(registry), records });
  images.present.set("app:1", info("sha256:1")).set("secret:1", info("sha256:secret"));
  await ensure("app:1");
  await ensure("secret:1");
  await ensure("app:1", { policy: "Always" });
  await failure("gone:1", { policy: "Never" });
  await failure("UPPER:1");
  images.instant = false;
  const slow = ensure("slow:1");
  await settle();
  await clock.advance(2_000);
  images.pulls.at(-1)?.end();
  await slow;
  images.statusError = new Error("no answer");
  await failure("app:1");
  const shown = await metricsText(registry);
  const lines = shown.split("\n").filter((line) => line.startsWith("kubelet_image_manager_ensure"));
  const name = "kubelet_image_manager_ensure_image_requests_total";
  expect(lines.sort()).toEqual([
    `${name}{present_locally="false",pull_policy="ifnotpresent",pull_required="true"} 1`,
    `${name}{present_locally="false",pull_policy="never",pull_required="false"} 1`,
    `${name}{present_locally="true",pull_policy="ifnotpresent",pull_required="false"} 1`,
    `${name}{present_locally="true",pull_policy="ifnotpresent",pull_required="true"} 1`,
    `${name}{present_locally="unknown",pull_policy="always",pull_required="true"} 1`,
    `${name}{present_locally="unknown",pull_policy="ifnotpresent",pull_required="unknown"} 2`,
  ]);
  expect(shown).toContain('kubelet_image_pull_duration_seconds_sum{image_size_in_bytes="0-10MB"} 2\n');
  expect(shown).toContain('kubelet_image_pull_duration_seconds_count{image_size_in_bytes="0-10MB"} 3\n');
});
