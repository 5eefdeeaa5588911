"""Records Meta-World's scripted experts as a LeRobotDataset with depth and camera geometry."""
