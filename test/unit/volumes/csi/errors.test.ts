import { expect, test } from "vitest";
import { hasCode } from "../../../../agent/lib/errors.ts";
import { endpointTarget } from "../../../../agent/volumes/csi/client.ts";
import { csiError } from "../../../../agent/volumes/csi/errors.ts";
import { isFinalError } from "../../../../agent/volumes/csi/port.ts";
import { compareVersions, highestVersion } from "../../../../agent/volumes/csi/versions.ts";

const codes: { status: number; name: string; code: string; isFinal: boolean }[] = [
  { status: 1, name: "Canceled", code: "Canceled", isFinal: false },
  { status: 2, name: "Unknown", code: "Internal", isFinal: true },
  { status: 3, name: "InvalidArgument", code: "Invalid", isFinal: true },
  { status: 4, name: "DeadlineExceeded", code: "DeadlineExceeded", isFinal: false },
  { status: 5, name: "NotFound", code: "NotFound", isFinal: true },
  { status: 6, name: "AlreadyExists", code: "AlreadyExists", isFinal: true },
  { status: 7, name: "PermissionDenied", code: "Forbidden", isFinal: true },
  { status: 8, name: "ResourceExhausted", code: "Unavailable", isFinal: false },
  { status: 9, name: "FailedPrecondition", code: "Conflict", isFinal: true },
  { status: 10, name: "Aborted", code: "Unavailable", isFinal: false },
  { status: 11, name: "OutOfRange", code: "Invalid", isFinal: true },
  { status: 12, name: "Unimplemented", code: "Unimplemented", isFinal: true },
  { status: 13, name: "Internal", code: "Internal", isFinal: true },
  { status: 14, name: "Unavailable", code: "Unavailable", isFinal: false },
  { status: 15, name: "DataLoss", code: "Internal", isFinal: true },
  { status: 16, name: "Unauthenticated", code: "Unauthorized", isFinal: true },
];
for (const { status, name, code, isFinal } of codes) {
  test(`${name} is ${isFinal ? "final" : "not final"}, and ${code}`, () => {
    const err = csiError({ code: status, details: "the disk is on fire" }, "NodeStageVolume");
    expect(err).toMatchObject({ status: name, code, isFinal });
    expect(isFinalError(err)).toBe(isFinal);
    expect(err.message).toBe(`NodeStageVolume: rpc error: code = ${name} desc = the disk is on fire`);
  });
}

test("a code that gRPC does not have is not final", () => {
  const err = csiError({ code: 99, details: "" }, "x");
  expect(err).toMatchObject({ status: undefined, isFinal: false, code: "Internal" });
  expect(isFinalError(new Error("anything else"))).toBe(false);
});

const versions: { name: string; versions: string[]; want: number[] | RegExp }[] = [
  { name: "one", versions: ["1.0.0"], want: [1, 0, 0] },
  { name: "the highest, not the last", versions: ["1.2.0", "1.10.0", "1.9.9"], want: [1, 10, 0] },
  { name: "0.x", versions: ["0.3.0"], want: [0, 3, 0] },
  { name: "a v before it and a suffix behind it", versions: ["v1.5.0-rc1"], want: [1, 5, 0] },
  { name: "those of the future are passed over", versions: ["1.1.0", "2.0.0"], want: [1, 1, 0] },
  { name: "those that are none as well", versions: ["latest", "1.1"], want: [1, 1] },
  { name: "none at all", versions: [], want: /names no version of CSI/ },
  { name: "only of the future", versions: ["2.0.0"], want: /speaks versions 2.0.0 of CSI, none is 1.x/ },
  { name: "only nonsense", versions: ["1", "..", ""], want: /none is 1.x/ },
];
for (const { name, versions: said, want } of versions) {
  test(`highestVersion: ${name}`, () => {
    if (Array.isArray(want)) expect(highestVersion("a.test", said)).toEqual(want);
    else expect(() => highestVersion("a.test", said)).toThrow(want);
  });
}

test("versions of different lengths compare", () => {
  expect(compareVersions([1, 1], [1, 1, 0])).toBe(0);
  expect(compareVersions([1, 1], [1, 1, 1])).toBeLessThan(0);
  expect(compareVersions([1, 2], [1, 1, 9])).toBeGreaterThan(0);
});

for (const endpoint of ["/var/lib/kubelet/plugins/a/csi.sock", "unix:///var/lib/kubelet/plugins/a/csi.sock"]) {
  test(`${endpoint} names a socket`, () =>
    expect(endpointTarget("a.test", endpoint)).toBe("unix:///var/lib/kubelet/plugins/a/csi.sock"));
}
for (const endpoint of ["", "csi.sock", "tcp://127.0.0.1:1", "unix://"]) {
  test(`"${endpoint}" names none`, () => {
    const make = () => endpointTarget("a.test", endpoint);
    expect(make).toThrow(`endpoint "${endpoint}" of CSI driver a.test`);
    try {
      make();
    } catch (err) {
      expect(hasCode(err, "Invalid")).toBe(true);
    }
  });
}
