import { describe, expect, test } from "vitest";
import type { PersistentVolumeClaim } from "../../../agent/kube/types.ts";
import type { BoundClaim } from "../../../agent/volumes/kind.ts";
import { expansionFailure } from "../../../agent/volumes/csi/errors.ts";
import { CSIError } from "../../../agent/volumes/csi/port.ts";
import {
  decideExpansion,
  expandedStatus,
  type ExpansionPlan,
  failedStatus,
} from "../../../agent/volumes/expand-plan.ts";

const mebi = 1 << 20;

interface Sizes {
  volume?: string;
  claim?: string;
  allocated?: string;
  state?: string;
  annotations?: Record<string, string>;
  accessModes?: string[];
  isReadOnly?: boolean;
}

function bound({
  volume,
  claim,
  allocated,
  state,
  annotations,
  accessModes = [],
  isReadOnly = false,
}: Sizes): BoundClaim {
  const status: PersistentVolumeClaim["status"] = {
    ...(claim === undefined ? {} : { capacity: { storage: claim } }),
    ...(allocated === undefined ? {} : { allocatedResources: { storage: allocated } }),
    ...(state === undefined ? {} : { allocatedResourceStatuses: { storage: state } }),
  };
  return {
    claim: { metadata: { name: "c", ...(annotations === undefined ? {} : { annotations }) }, status },
    volume: {
      metadata: { name: "pv" },
      spec: { accessModes, ...(volume === undefined ? {} : { capacity: { storage: volume } }) },
    },
    isReadOnly,
  };
}

describe("decideExpansion", () => {
  const none: ExpansionPlan = { kind: "none" };
  const expand = (size: string, isTracked: boolean, isClaimDone = false): ExpansionPlan => ({
    kind: "expand",
    size,
    bytes: Number.parseInt(size, 10) * mebi,
    isTracked,
    isClaimDone,
  });
  const shared = ["ReadWriteMany"];
  const notRequired = { "volume.kubernetes.io/node-expansion-not-required": "true" };
  const cases: [string, Sizes, number | undefined, ExpansionPlan][] = [
    ["as large as it should be", { volume: "8Mi", claim: "8Mi" }, undefined, none],
    ["the same in other words", { volume: "1Gi", claim: "1024Mi" }, undefined, none],
    ["larger than asked for", { volume: "8Mi", claim: "9Mi" }, undefined, none],
    ["nobody says how large", { claim: "8Mi" }, undefined, none],
    ["a claim without a size", { volume: "8Mi" }, undefined, none],
    ["grown, an old resizer", { volume: "16Mi", claim: "8Mi" }, undefined, expand("16Mi", false)],
    ["grown, and done here", { volume: "16Mi", claim: "8Mi" }, 16 * mebi, none],
    ["grown again", { volume: "32Mi", claim: "8Mi" }, 16 * mebi, expand("32Mi", false)],
    [
      "grown, but read-only",
      { volume: "16Mi", claim: "8Mi", isReadOnly: true },
      undefined,
      {
        kind: "read-only",
        bytes: 16 * mebi,
      },
    ],
    [
      "pending for the node",
      { volume: "16Mi", claim: "8Mi", allocated: "16Mi", state: "NodeResizePending" },
      undefined,
      expand("16Mi", true),
    ],
    [
      "begun before a restart",
      { volume: "16Mi", claim: "8Mi", allocated: "16Mi", state: "NodeResizeInProgress" },
      undefined,
      expand("16Mi", true),
    ],
    [
      "the controller is at it",
      { volume: "16Mi", claim: "8Mi", allocated: "16Mi", state: "ControllerResizeInProgress" },
      undefined,
      none,
    ],
    ["given up", { volume: "16Mi", claim: "8Mi", allocated: "16Mi", state: "NodeResizeInfeasible" }, undefined, none],
    [
      "done on another node",
      { volume: "16Mi", claim: "16Mi", allocated: "16Mi", accessModes: shared },
      8 * mebi,
      expand("16Mi", false, true),
    ],
    [
      "done for all nodes",
      { volume: "16Mi", claim: "16Mi", allocated: "16Mi", accessModes: shared, annotations: notRequired },
      8 * mebi,
      none,
    ],
    ["done, and of one node", { volume: "16Mi", claim: "16Mi", allocated: "16Mi" }, 8 * mebi, none],
  ];
  test.each(cases)("%s", (_, sizes, knownBytes, want) => {
    expect(decideExpansion(bound(sizes), false, knownBytes)).toEqual(want);
  });

  test("a volume that its source makes read-only", () => {
    expect(decideExpansion(bound({ volume: "16Mi", claim: "8Mi" }), true, undefined).kind).toBe("read-only");
  });
});

test("what failing means", () => {
  const answered = (status: "FailedPrecondition" | "NotFound" | "Internal" | "Unavailable", isFinal: boolean) =>
    new CSIError("Internal", "no", { status, isFinal });
  expect(expansionFailure(answered("FailedPrecondition", true))).toBe("in use");
  expect(expansionFailure(answered("NotFound", true))).toBe("infeasible");
  expect(expansionFailure(answered("Internal", true))).toBe("failed");
  expect(expansionFailure(answered("Unavailable", false))).toBe("unfinished");
  expect(expansionFailure(new Error("connection lost"))).toBe("unfinished");
});

test("a claim's status loses what is over, and keeps what is others'", () => {
  const claim: PersistentVolumeClaim = {
    metadata: { name: "c" },
    status: {
      allocatedResourceStatuses: { storage: "NodeResizeInProgress" },
      conditions: [
        { type: "FileSystemResizePending", status: "True" },
        { type: "NodeResizeError", status: "True" },
        { type: "ModifyingVolume", status: "True" },
      ],
    },
  };
  expect(expandedStatus(claim, "16Mi")).toEqual({
    capacity: { storage: "16Mi" },
    allocatedResourceStatuses: { storage: null },
    conditions: [{ type: "ModifyingVolume", status: "True" }],
  });
  expect(failedStatus(claim, true, "too big", 0)).toEqual({
    allocatedResourceStatuses: { storage: "NodeResizeInfeasible" },
    conditions: [
      { type: "FileSystemResizePending", status: "True" },
      { type: "ModifyingVolume", status: "True" },
      {
        type: "NodeResizeError",
        status: "True",
        message: "failed to expand pvc with too big",
        lastTransitionTime: "1970-01-01T00:00:00Z",
      },
    ],
  });
});
