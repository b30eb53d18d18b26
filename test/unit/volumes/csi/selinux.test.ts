import { describe, expect, test } from "vitest";
import type { CSIDriver, PodSpec } from "../../../../agent/kube/types.ts";
import { contextOption, mountContextOf } from "../../../../agent/volumes/csi/selinux.ts";
import type { CSIVolume } from "../../../../agent/volumes/csi/volume.ts";
import { makePod } from "../support.ts";

const volume: CSIVolume = {
  driver: "csi.test",
  handle: "h",
  isEphemeral: false,
  isReadOnly: false,
  fsType: "",
  attributes: {},
  mountOptions: [],
  accessModes: ["ReadWriteOncePod"],
  stageSecret: undefined,
  publishSecret: undefined,
  expandSecret: undefined,
};
const object: CSIDriver = { metadata: { name: "csi.test" }, spec: { seLinuxMount: true } };
const level = { seLinuxOptions: { level: "s0:c1,c2" } };
const mounting = (securityContext?: object) => ({
  name: "app",
  volumeMounts: [{ name: "data", mountPath: "/data" }],
  ...(securityContext === undefined ? {} : { securityContext }),
});
const pod = (spec: Partial<PodSpec>) => makePod({ containers: [mounting()], securityContext: level, ...spec });
const label = "system_u:object_r:container_file_t:s0:c1,c2";

describe("mountContextOf", () => {
  test("one pod's volume, a driver that can, and a level: the whole volume gets the label", () => {
    expect(mountContextOf(pod({}), "data", volume, object)).toBe(label);
    expect(contextOption(label)).toBe(`context="${label}"`);
    const own = { seLinuxOptions: { level: "s0:c9", user: "staff_u" } };
    const overriding = pod({ containers: [mounting(own)] });
    expect(mountContextOf(overriding, "data", volume, object)).toBe("staff_u:object_r:container_file_t:s0:c9");
    expect(mountContextOf(pod({}), "data", volume, object, "u:r:own_t:s0")).toBe("u:r:own_t:s0:c1,c2");
  });

  const without: [string, Partial<PodSpec>, Partial<CSIVolume>, CSIDriver | undefined][] = [
    ["others may have it, too", {}, { accessModes: ["ReadWriteOnce"] }, object],
    ["it may be used otherwise", {}, { accessModes: ["ReadWriteOncePod", "ReadWriteOnce"] }, object],
    ["the driver does not say it can", {}, {}, { metadata: { name: "csi.test" }, spec: {} }],
    ["there is no driver object", {}, {}, undefined],
    ["the pod does not want it", { securityContext: { ...level, seLinuxChangePolicy: "Recursive" } }, {}, object],
    ["nobody says the level", { securityContext: {} }, {}, object],
    ["written in the pod", {}, { isEphemeral: true }, object],
    ["only a privileged container has it", { containers: [mounting({ privileged: true })] }, {}, object],
  ];
  test.each(without)("%s: without", (_, spec, changes, driver) => {
    expect(mountContextOf(pod(spec), "data", { ...volume, ...changes }, driver)).toBeUndefined();
  });

  test("containers that disagree are refused", () => {
    const containers = [mounting(), { ...mounting({ seLinuxOptions: { level: "s0:c3" } }), name: "other" }];
    expect(() => mountContextOf(pod({ containers }), "data", volume, object)).toThrow(
      `conflicting SELinux labels of volume data: ${label} and system_u:object_r:container_file_t:s0:c3`,
    );
  });
});
