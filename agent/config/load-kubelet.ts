import { dirname, isAbsolute, join } from "node:path";
import { messageOf } from "../lib/errors.ts";
import { isObject } from "../lib/json.ts";
import { parseCPUSet } from "./cpuset.ts";
import { readDocument } from "./document.ts";
import { kubeletGateWarnings } from "./feature-gates.ts";
import { type Flag, flagsOf } from "./flags.ts";
import type { ConfigHost } from "./host.ts";
import { defaultEvictionHard, type KubeletConfiguration, kubeletFields } from "./kubelet-config.ts";
import { cadvisorFlagFields, type KubeletFlags, kubeletFlagFields } from "./kubelet-flags.ts";
import { mergePatch } from "./merge-patch.ts";
import { ConfigError } from "./problems.ts";
import { encodeTable, fieldsOf, setValueAt, type Values, valueAt, withDefaults } from "./schema.ts";
import { decodeFields, deprecatedFlagWarnings, fail, noteSources, type Sources, supportWarnings } from "./sources.ts";
import { validateKubelet, validateKubeletFlags } from "./validate-kubelet.ts";

/** Everything that the kubelet role is told: flags without a field, and the configuration that results from all sources. */
export interface KubeletSettings {
  flags: KubeletFlags;
  config: KubeletConfiguration;
}

export interface Loaded<T> {
  settings: T;
  /** Lines for people: fields without effect, deprecated flags, skipped files. */
  warnings: string[];
}

const documentType = { apiVersion: "kubelet.config.k8s.io/v1beta1", kind: "KubeletConfiguration" };

/** Flags of the kubelet role. */
export const kubeletCommandFlags = flagsOf(kubeletFields, kubeletFlagFields, cadvisorFlagFields);

/**
 * Puts together the kubelet's settings: defaults, then the file, then the drop-in directory, then flags; the later wins.
 *
 * @throws ConfigError with a line for each problem
 */
export function loadKubeletSettings(given: ReadonlyMap<Flag, unknown>, host: ConfigHost): Loaded<KubeletSettings> {
  const sources: Sources = new Map();
  const warnings: string[] = [];
  const flagValues: Values = {};
  for (const [{ table, path }, value] of given) if (table === kubeletFlagFields) setValueAt(flagValues, path, value);
  const flags = withDefaults(kubeletFlagFields, flagValues);

  const fromFile = flags.config === "" ? legacyDefaults() : readConfigFile(flags.config, sources, host);
  const merged = flags.configDir === "" ? fromFile : mergeDropIns(fromFile, flags.configDir, sources, warnings, host);
  const config = applyFlags(merged, given, sources);

  fail(
    [...validateKubeletFlags(flags), ...validateKubelet(config, host)],
    sources,
    flags.config === "" ? "configuration" : flags.config,
  );
  warnings.push(...deprecatedFlagWarnings(given, kubeletFields), ...supportWarnings(kubeletFields, config, sources));
  warnings.push(...kubeletGateWarnings(config.featureGates));
  const flagSources: Sources = new Map();
  for (const flag of given.keys()) {
    if (flag.table === kubeletFlagFields) flagSources.set(flag.path.join("."), `--${flag.flag}`);
  }
  warnings.push(...supportWarnings(kubeletFlagFields, flags, flagSources));
  return { settings: { flags, config: finish(config, flags) }, warnings };
}

/** The answer of `/configz`: the configuration in use as a file would say it, without secrets. */
export function kubeletConfigz(config: KubeletConfiguration): { kubeletconfig: Values } {
  const shown = encodeTable(kubeletFields, config);
  for (const { path, field } of fieldsOf(kubeletFields)) {
    const value = valueAt(config, path);
    if (field.options.secret && !field.kind.isZero(value)) setValueAt(shown, path, "<masked>");
  }
  return { kubeletconfig: { ...documentType, ...shown } };
}

// Without a file, the reference keeps the defaults that its flags had before there were files.
function legacyDefaults(): KubeletConfiguration {
  const config = withDefaults(kubeletFields, {});
  config.authentication.anonymous.enabled = true;
  config.authentication.webhook.enabled = false;
  config.authorization.mode = "AlwaysAllow";
  config.readOnlyPort = 10255;
  return config;
}

function readConfigFile(file: string, sources: Sources, host: ConfigHost): KubeletConfiguration {
  const given = decodeFields(kubeletFields, readDocument(file, documentType, host), file);
  noteSources(sources, kubeletFields, given, file);
  for (const { path, field } of fieldsOf(kubeletFields)) {
    const value = valueAt(given, path);
    if (field.options.fileRelative && typeof value === "string" && value !== "" && !isAbsolute(value)) {
      setValueAt(given, path, join(dirname(file), value));
    }
  }
  given["evictionHard"] ??= { ...defaultEvictionHard };
  return withDerivedDefaults(given);
}

function withDerivedDefaults(given: Values): KubeletConfiguration {
  // A status computed at a rate of one's own is also sent at that rate, unless said otherwise.
  given["nodeStatusReportFrequency"] ??= given["nodeStatusUpdateFrequency"];
  const pulls = given["maxParallelImagePulls"];
  if (typeof pulls === "number" && pulls >= 2) given["serializeImagePulls"] ??= false;
  return withDefaults(kubeletFields, given);
}

function mergeDropIns(
  base: KubeletConfiguration,
  dir: string,
  sources: Sources,
  warnings: string[],
  host: ConfigHost,
): KubeletConfiguration {
  let paths: string[];
  try {
    paths = host.filesBelow(dir);
  } catch (err) {
    throw new ConfigError([`--config-dir: ${dir} cannot be read: ${messageOf(err)}`]);
  }
  let config = base;
  for (const path of paths) {
    if (!path.endsWith(".conf")) {
      warnings.push(`${path}: skipped, because its name does not end in .conf`);
      continue;
    }
    const patch = readDocument(path, documentType, host);
    decodeFields(kubeletFields, patch, path); // alone, so that problems name this file
    noteSources(sources, kubeletFields, patch, path);
    config = withDerivedDefaults(
      decodeFields(kubeletFields, mergePatch(encodeTable(kubeletFields, config), patch), path),
    );
  }
  return config;
}

function applyFlags(
  config: KubeletConfiguration,
  given: ReadonlyMap<Flag, unknown>,
  sources: Sources,
): KubeletConfiguration {
  const result: Values = structuredClone(config);
  for (const [{ table, path, flag }, value] of given) {
    if (table !== kubeletFields) continue;
    // Gates merge one by one; every other map is replaced as a whole.
    const isGates = path[0] === "featureGates" && isObject(value);
    setValueAt(result, path, isGates ? { ...config.featureGates, ...value } : value);
    sources.set(path.join("."), `--${flag}`);
  }
  return result as KubeletConfiguration;
}

// What the reference computes from the valid configuration before it runs.
function finish(config: KubeletConfiguration, flags: KubeletFlags): KubeletConfiguration {
  const { reservedSystemCPUs, evictionHard } = config;
  const reserved = { systemReserved: config.systemReserved, kubeReserved: config.kubeReserved };
  if (reservedSystemCPUs !== "") {
    const { cpu: _, ...kubeReserved } = config.kubeReserved;
    const cpus = String(parseCPUSet(reservedSystemCPUs)?.size ?? 0);
    Object.assign(reserved, { systemReserved: { ...config.systemReserved, cpu: cpus }, kubeReserved });
  }
  return {
    ...config,
    ...reserved,
    evictionHard: config.mergeDefaultEvictionSettings ? { ...defaultEvictionHard, ...evictionHard } : evictionHard,
    cgroupRoot: config.cgroupsPerQOS && config.cgroupRoot === "" ? "/" : config.cgroupRoot,
    seccompDefault: config.seccompDefault || flags.seccompDefault,
  };
}
