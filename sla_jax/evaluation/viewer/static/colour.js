// Numbers → one of eleven levels, each a background and an ink in colours.css. Colour never stands alone: whatever
// has a level also says its number when it is pointed at or focused.

export const LEVELS = 11;
const SURE = 6; // nats from which everything is darkest

/** Reward → 0 (bad) … 10 (good), 5 at zero. The same for every text, so that two can be compared; null for none. */
export function rewardLevel(reward) {
  if (typeof reward !== "number" || Number.isNaN(reward)) return null;
  return Math.round(5 + 5 * Math.tanh(reward / 2));
}

/** Entropy in nats → 0 (certain) … 10 (least certain); null for none. */
export function entropyLevel(entropy) {
  if (typeof entropy !== "number" || Number.isNaN(entropy)) return null;
  return Math.max(0, Math.min(LEVELS - 1, Math.round((entropy / SURE) * (LEVELS - 1))));
}

/** The mean of those that are numbers; null of none. */
export function mean(values) {
  const known = values.filter((value) => typeof value === "number" && Number.isFinite(value));
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}
