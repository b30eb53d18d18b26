import { parseQuantity } from "../kube/quantity.ts";
import { int, list, map, oneOf, quantity, type Range, string } from "./kinds.ts";
import { type At, show } from "./problems.ts";
import { decodeObject, encodeTable, type Kind, type Table, type Values, type ValuesOf, works } from "./schema.ts";

/** A list of objects with the fields of `table`; `required` ones must be there. As a flag, one `parse` understands. */
function objects<T extends Table>(
  table: T,
  required: readonly string[],
  parse: (text: string, at: At) => Values[],
): Kind<ValuesOf<T>[]> {
  const read = (raw: unknown, at: At) => decodeObject(table, required, raw, at);
  return {
    type: "list",
    decode: (raw, at) =>
      Array.isArray(raw) ? raw.map((item, i) => read(item, at.child(i))) : at.fail(`must be a list, not ${show(raw)}`),
    encode: (value) => value.map((item) => encodeTable(table, item)),
    parseFlag: (text, at) => parse(text, at).map((item) => read(item, at)),
    combine: (earlier, later) => [...earlier, ...later],
    isZero: (value) => value.length === 0,
  };
}

function noFlag(_text: string, at: At): Values[] {
  at.fail("cannot be given as a flag");
  return [];
}

/** logging.vmodule; as a flag `pattern=N,...`. */
export const vmodule = objects(
  { filePattern: works(string(), "", "file name pattern"), verbosity: works(int({ min: 0 }), 0, "its verbosity") },
  ["filePattern"],
  (text, at) =>
    Object.entries(map(int({ min: 0 })).parseFlag(text, at) ?? {}).map(([filePattern, verbosity]) => ({
      filePattern,
      verbosity,
    })),
);

/** registerWithTaints; as a flag `key=value:Effect` or `key:Effect`, comma separated. */
export const taints = objects(
  {
    key: works(string(), "", "taint key"),
    value: works(string(), "", "taint value"),
    effect: works(oneOf("NoSchedule", "PreferNoSchedule", "NoExecute"), "NoSchedule", "what it does"),
  },
  ["key", "effect"],
  (text, at) =>
    text.split(",").flatMap((item) => {
      if (item === "") return [];
      const match = /^([^=:]+)(?:=([^=:]*))?:([^=:]+)$/.exec(item);
      if (match === null) {
        at.fail(`must be taints such as key=value:NoSchedule, not ${show(item)}`);
        return [];
      }
      return [{ key: match[1], value: match[2] ?? "", effect: match[3] }];
    }),
);

/** reservedMemory; as a flag `0:memory=1Gi,hugepages-2Mi=2Mi;1:memory=1Gi`. */
export const reservedMemory = objects(
  {
    numaNode: works(int({ min: 0 }), 0, "NUMA node"),
    limits: works(map(quantity), {}, "memory and hugepages-<size> reserved on it"),
  },
  ["limits"],
  (text, at) =>
    text.split(";").flatMap((item) => {
      if (item === "") return [];
      const match = /^(\d+):(.+)$/.exec(item);
      if (match === null) {
        at.fail(`must be like 0:memory=1Gi,hugepages-2Mi=2Mi;1:memory=1Gi, not ${show(item)}`);
        return [];
      }
      return [{ numaNode: Number(match[1]), limits: map(quantity).parseFlag(match[2] ?? "", at) ?? {} }];
    }),
);

/** shutdownGracePeriodByPodPriority. */
export const shutdownByPriority = objects(
  {
    priority: works(int(), 0, "lowest pod priority of the band"),
    shutdownGracePeriodSeconds: works(int({ min: 0 }), 0, "its pods' grace period"),
  },
  [],
  noFlag,
);

/** staticPodURLHeader: name → values; as a flag `Name:Value`, repeated ones add values. */
export const headers: Kind<Record<string, string[]>> = {
  ...map(list(string()), { separator: ":" }),
  combine: (earlier, later) => {
    const merged = { ...earlier };
    for (const [name, values] of Object.entries(later)) merged[name] = [...(merged[name] ?? []), ...values];
    return merged;
  },
};

/** A quantity or a percentage, as eviction thresholds and minimum reclaims are. Kept as written. */
const amount: Kind<string> = {
  ...string(),
  check: (text) => {
    const percent = /^(\d+(?:\.\d+)?)%$/.exec(text);
    if (percent !== null && Number(percent[1]) <= 100) return undefined;
    const units = parseQuantity(text);
    return units !== undefined && units >= 0n && text !== "" ? undefined : 'must be like "100Mi" or "10%"';
  },
};

/** A share of the node, such as `50%`. */
const percentage: Kind<string> = string((text) =>
  /^\d+(\.\d+)?%$/.test(text) && Number.parseFloat(text) <= 100 ? undefined : "must be a percentage from 0% to 100%",
);

/** Signals that a user can set a threshold on. */
export const evictionSignals = [
  "memory.available",
  "nodefs.available",
  "nodefs.inodesFree",
  "imagefs.available",
  "imagefs.inodesFree",
  "containerfs.available",
  "containerfs.inodesFree",
  "pid.available",
] as const;

/** evictionHard, evictionSoft; as a flag `signal<amount,...`. */
export const evictionThresholds = map(amount, { separator: "<", keys: evictionSignals });
export const evictionReclaims = map(amount, { keys: evictionSignals });
/** Per signal, `T` each; as a flag `signal=value`. */
export const perSignal = <T>(item: Kind<T>): Kind<Record<string, T>> => map(item, { keys: evictionSignals });

const reservable = ["cpu", "memory", "ephemeral-storage", "pid"] as const;

/** systemReserved, kubeReserved. */
export const reservations = map(
  {
    ...string(),
    check: (text: string) => {
      const units = parseQuantity(text);
      return units !== undefined && units >= 0n ? undefined : 'must be a quantity such as "500m" or "1Gi", 0 or more';
    },
  },
  { keys: reservable },
);

/** qosReserved. */
export const qosReservations = map(percentage, { keys: ["memory"] });

/** Text maps such as policy options and labels. */
export const texts = map(string());

/** Numbers in a list, such as TLS curve IDs. */
export const ints = (range: Range) => list(int(range));
